"""Metrics: pure functions of recorded numbers (NumPy only, no model)."""
