"""Training data that are made: from templates, from other data, from a model, each of them checked."""
