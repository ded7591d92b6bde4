"""A run: one forward pass of one checkpoint over all windows, and the statistics of its weights."""
