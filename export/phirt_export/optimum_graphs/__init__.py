"""Models whose family phirt does not build: optimum traces the published classes of transformers, and what it
makes becomes a bundle in standard operators, with weights in phirt's formats.

Text decoders with a cache, and encoders that make vectors of texts. `tracing` alone imports optimum, from the
extra of that name, which needs an environment of its own.
"""
