"""What a kind of device is to a package. Knows no device."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class MobileProfile:
    """One kind of device.

    Attributes:
        name: what `--target` calls it.
        title: what its makers call it.
        memory_share: of a device's memory, what an app in the foreground can rely on.
        library: the onnxruntime that the app ships.
        driver: what runs a package there.
        guide: what an app does with a package.
        memory_limit: what a program can have there at most, however much the device has; None for all of it.
        max_file_bytes: of the largest file that can be opened; graphs are then written anew for hosts without
            files, see `page_graphs`. None where graphs are mapped as they lie.
    """

    name: str
    title: str
    memory_share: float
    library: str
    driver: str
    guide: str
    memory_limit: int | None = None
    max_file_bytes: int | None = None


# Of both phones, whose apps have the same library.
APP_DRIVER = "phirt's library for apps (`apps/native` of phirt's repository; the app's side is in `{host}`)"
APP_GUIDE = (
    "Put this folder into the app's files; `phirt_model_open` takes its path. The weights are mapped from "
    "the files, so they must not lie compressed inside of an archive."
)
