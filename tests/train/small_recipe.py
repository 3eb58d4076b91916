"""The smallest decoder and tokenizer that a recipe can name, for tests of what goes around them."""

SMALL_MODEL = """
[model.decoder]
num_layers = 1
hidden_size = 32
num_heads = 2
num_kv_heads = 1
head_dim = 16
intermediate_size = 64
vocab_size = 300
norm_eps = 1e-5
rope = { theta = 1e4, rotary_dim = 16, original_context = 64, context = 64 }

[tokenizer]
vocab_size = 300
"""
