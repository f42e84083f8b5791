"""Studies: several arms of one recipe, their stores, runs and report."""
