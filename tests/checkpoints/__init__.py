"""Random checkpoints in published layouts, of any size, with a tokenizer: `python -m tests.checkpoints`."""
