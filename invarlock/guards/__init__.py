"""Guards: what can be wrong with a checkpoint although its perplexity looks right.

Order of a run: invariants, spectral, rmt, variance, invariants (once more, on what was loaded).
Every guard compares the subject with statistics recorded from the baseline.
"""

CHAIN = ("invariants", "spectral", "rmt", "variance", "invariants")
