"""Figures of what the scaling laws say: slices, maps, scenarios, and what a loss costs (arXiv 2502.08606)."""
