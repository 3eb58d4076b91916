"""Asks the embedded model about a picture and prints the answer as it comes.

    python apps/examples/ask.py apps/examples/shoes.jpg "What is this?"

Freezes with `pyinstaller apps/examples/ask.py`, without options: phirt brings its own hook.
"""

import sys

import phirt


def main(picture: str, question: str) -> None:
    """Streams one answer."""
    with phirt.load() as model:
        for piece in model.chat().send(question, images=[picture], max_new_tokens=64):
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:3])
