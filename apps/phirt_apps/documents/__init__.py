"""Answers from a user's own files: reading them, an index of passages, the prompt made of what fits.

`library.Library` is the whole of it for a command. Nothing of it opens a connection.
"""
