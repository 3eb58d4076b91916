"""Rewrites of graphs, one a file: rules by operator (see `phirt_export.variants.rewriter`), or a function."""
