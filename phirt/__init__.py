"""Runs multimodal models on onnxruntime: offline, fast, private.

    model = phirt.load()                      # the embedded bundle; or phirt.load("folder")
    chat = model.chat(system="…")
    for piece in chat.send("What is this?", images=["photo.jpg"]): print(piece, end="")

Importing this opens nothing and changes nothing: names are fetched from their modules when they are first
used. The one list of them is `__init__.pyi`, which type checkers read too. What happens is logged under the
name `phirt`.
"""

import logging

import lazy_loader

__version__ = "0.1.0"

logging.getLogger("phirt").addHandler(logging.NullHandler())  # whoever embeds phirt decides what is shown

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
