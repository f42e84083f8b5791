"""Before a run: parameters, compute and memory, scaling laws and their fits, what to spend where. Free of torch."""
