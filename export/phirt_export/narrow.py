"""A dataclass made of another one's fields of the same names, so that twins need no mapping by hand.

Knows dataclasses. Knows nothing of what they mean.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)
else:
    D = TypeVar("D")


def narrow(cls: type[D], source: object, **others: object) -> D:
    """An instance of `cls` with the values that `source` has under the same names, and with `others`."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in others]
    return cls(**{name: getattr(source, name) for name in names}, **others)
