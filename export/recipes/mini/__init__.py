"""The embedded model "mini": its recipe, the code that assembles its base from published weights, and the
code that writes its training data.

`base.py` makes the checkpoint that `recipe.toml` starts from, `prepare.py` turns the data package (a folder
with text/, images/ and speech/) into JSON lines and media. Nothing of this is known to the trainer.
"""
