"""Tokenizers that lie in other files than tokenizer.json, made into its document: sentencepiece's models, a
pair of vocab.json and merges.txt, Mistral's tekken.json.

Each file's module knows its format; `convert` knows which of them a checkpoint has, and what
tokenizer_config.json adds.
"""
