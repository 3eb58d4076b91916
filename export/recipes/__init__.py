"""Recipes: what is trained and on what, as data, each with the code that writes its data beside it."""
