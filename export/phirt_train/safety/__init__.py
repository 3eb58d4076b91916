"""Whether a model refuses what it should and nothing else, and rounds that mend what it gets wrong."""
