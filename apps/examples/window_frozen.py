"""`phirt desktop` as a program of its own, for a machine without Python.

    pip install ".[desktop]" pyinstaller
    pyinstaller --windowed --name phirt-desktop apps/examples/window_frozen.py

Then `dist/phirt-desktop/phirt-desktop` opens the window; it takes the options of `phirt desktop`.
"""

import sys

from phirt_apps.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["desktop"]
    main()
