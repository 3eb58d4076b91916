"""The entry of the command `phirt`, and of `python -m phirt_apps`: Ctrl-C is taken care of before all else.

Knows the order. Imports nothing that takes time before signals are in good hands.
"""

try:
    from phirt_apps.interrupts import interrupts

    interrupts.install()
except KeyboardInterrupt:
    raise SystemExit(130) from None


def main() -> None:
    """Runs the command line of this process and ends it."""
    from phirt_apps.cli import main as run

    run()


if __name__ == "__main__":
    main()
