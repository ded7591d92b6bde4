"""Deliberate damage: controls that a guard must catch, streamed like edits.

``kinds`` holds the kinds of damage, each a class with its parameters and what it does; ``kind`` is
what they have in common, ``targets`` finds what they hit, ``specs`` parses what is asked for and
``inject`` writes the damaged checkpoint.
"""
