"""Texts that a teacher writes, as training data."""
