"""The entry of the command `phirt`, and of `python -m phirt_apps`: Ctrl-C is taken care of before all else.

Knows the order. Imports nothing that takes time before signals are in good hands.
"""

import os

try:
    from phirt_apps.interrupts import interrupts

    interrupts.install()
except KeyboardInterrupt:
    raise SystemExit(130) from None

_LEAST_BYTES = 280 << 20  # of addresses: libraries and the smallest model take more


def main() -> None:
    """Runs the command line of this process and ends it."""
    from phirt.runtime.system import has_address_space

    # A library that gets no memory while it is imported ends the process, in its own words.
    if not has_address_space(_LEAST_BYTES):
        os.write(2, b"error: not enough memory to start: give this program more (ulimit -v)\n")
        raise SystemExit(1)
    from phirt_apps.cli import main as run

    run()


if __name__ == "__main__":
    main()
