"""Training: the trainer is code, a recipe is data."""
