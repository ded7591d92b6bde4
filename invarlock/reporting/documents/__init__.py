"""The documents that name guards; see :mod:`invarlock.documents`, which has the others."""
