"""Measuring models on held-out documents."""
