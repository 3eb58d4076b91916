"""GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) as checkpoints: one module for the
container, block types, tensors, configuration and tokenizer each; `checkpoint` puts them together.
"""
