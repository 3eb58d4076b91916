"""Random checkpoints in published layouts, of any size, with a real tokenizer: `python -m tests.checkpoints`."""
