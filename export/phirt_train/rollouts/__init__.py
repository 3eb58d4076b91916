"""Answers drawn from a model, verified, and sorted into what is learnt and what is not preferred."""
