"""Where this user's caches lie.

Knows the environment and each system's folder for caches. Knows nothing of what is kept there.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PHIRT_CACHE"  # another folder, or OFF
OFF = "off"


def cache_folder(kind: str) -> Path | None:
    """The folder for one kind of thing; None where the user wants no cache. Raises RuntimeError where no home
    folder is known.
    """
    named = os.environ.get(VARIABLE)
    if named in ("", OFF):
        return None
    try:
        if named is not None:
            return Path(named).expanduser().absolute() / kind
        from platformdirs import user_cache_path

        return user_cache_path("phirt", appauthor=False).absolute() / kind
    except (RuntimeError, KeyError) as error:  # a user without name, in an environment without HOME
        raise RuntimeError("this user has no home folder") from error
