"""Metrics: pure functions of recorded numbers (NumPy only, no model)."""

ARMS = ("preview", "final")  # of the windows: two samples of the same documents
MIN_DOCUMENTS = 5  # of a slice: of fewer nothing is known of how documents differ
