"""Windows' GPUs by DirectML: fused operators with queries, keys and values apart and turned by a node of
their own, rows of the token table unpacked by elementary operators, float16.
"""

from __future__ import annotations

from phirt_export.targets.passes import (
    gathered_rows,
    key_masks,
    media_rows,
    plain_products,
    separate_attention,
)
from phirt_export.targets.profile import TargetProfile

PROFILE = TargetProfile(
    "Windows GPUs by DirectML: separate attention inputs in float16",
    providers=("DmlExecutionProvider",),
    io_dtype="float16",
    passes=(
        plain_products.RULES,
        media_rows.RULES,
        key_masks.RULES,
        separate_attention.RULES,
        gathered_rows.RULES,
    ),
)
