"""What a bundle's weights take, as a table.

Knows what a manifest says about sizes. Opens no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phirt_apps.output import one_line, plain_table, size

if TYPE_CHECKING:
    from phirt_quant.sizes import BundleSizes


def size_table(sizes: BundleSizes) -> Any:
    """Bits a weight and bytes of each part and of all files."""
    table = plain_table("stored", "#bits a weight", "#weights", "#bytes")
    rows = dict(sizes.parts)
    if sizes.decoder is not None and len(rows) > 1:
        rows["decoder and token table"] = sizes.decoder
    for part, row in rows.items():
        table.add_row(one_line(part), f"{row.bits_per_weight:.2f}", f"{row.weights:,}", size(row.bytes))
    if sizes.whole is None:
        table.add_row("whole bundle", "unknown", "unknown", size(sizes.bytes))
    else:
        whole = sizes.whole
        table.add_row("whole bundle", f"{whole.bits_per_weight:.2f}", f"{whole.weights:,}", size(whole.bytes))
    return table
