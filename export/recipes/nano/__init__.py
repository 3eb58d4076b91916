"""The model of the tests, "nano": its recipe, and the code that writes its training data.

`recipe.toml` says what is trained, `prepare.py` turns the data package (a folder with text/, images/ and
speech/) into JSON lines and media. Nothing of this is known to the trainer.
"""
