"""Fitting scaling laws to runs: points from tables and run folders, forms, the solver, intervals, figures. Free of torch."""
