"""InvarLock: is an edited language-model checkpoint still as good as its baseline?"""

__version__ = "0.1.0"
