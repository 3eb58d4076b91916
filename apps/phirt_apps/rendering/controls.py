"""Control characters: what a terminal would obey is never shown.

Knows characters. Knows nothing of terminals, widths or styles.
"""

from __future__ import annotations

import re

# C0 and C1 controls except tab and newline: what a terminal could take as a command.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text without the control characters that a terminal would obey (tab and newline stay)."""
    return _CONTROLS.sub("", text)
