"""Training: the loop, the budget, checkpoints, processes."""
