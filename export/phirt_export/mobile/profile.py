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
        host: the folder of phirt's repository with the library and an app for it.
    """

    name: str
    title: str
    memory_share: float
    library: str
    host: str
