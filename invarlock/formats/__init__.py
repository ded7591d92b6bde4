"""Formats of checkpoints: which files hold the weights, and every tensor's own values.

``kind`` says what a format has to answer, ``kinds`` holds the formats, each a file.
"""
