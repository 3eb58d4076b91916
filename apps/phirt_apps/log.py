"""What the packages log, shown on stderr: warnings, and everything where PHIRT_DEBUG=1 asks for it.

Knows logging. Knows nothing of what is logged.
"""

from __future__ import annotations

import logging
import os
import traceback

from .output import Output

LOGGER = "phirt"


class _Notices(logging.Handler):
    """Each record as a quiet line on stderr, as it is when the record comes: a spinner may be in its way."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self.level < logging.WARNING:
            text = f"{record.name}: {text}"
            if record.exc_info:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        Output().hint(text)


def show_log() -> None:
    """From now on warnings of phirt are lines on stderr, or everything with PHIRT_DEBUG=1."""
    level = logging.DEBUG if os.environ.get("PHIRT_DEBUG") == "1" else logging.WARNING
    logger = logging.getLogger(LOGGER)
    logger.setLevel(level)
    logger.addHandler(_Notices(level))
    logging.getLogger("PIL").addHandler(
        logging.NullHandler()
    )  # what it says of a picture, the error says too
