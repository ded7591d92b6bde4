"""Metrics: pure functions of recorded numbers (NumPy only, no model)."""

ARMS = ("preview", "final")  # of the windows: two samples of the same documents
