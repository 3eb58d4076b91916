"""What published checkpoints say of themselves, read into the reference model's configuration.

Shared by the families; knows no family. None of its modules opens a weight.
"""
