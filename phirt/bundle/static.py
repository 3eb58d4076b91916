"""A decoder as graphs of one size each: their names, their tensors, and how an engine feeds them.

    embed     on the CPU: ids, media features and a place in the sequence become what the layers take
    prefill   the layers over `StaticShapes.prefill` tokens
    decode    the same for one token
    head      hidden states of one position become its logits

Layers read keys and values of all positions before, in buffers of `StaticShapes.window` positions, and give
those of their own tokens, which whoever runs them puts into the buffers. Padding behind a prompt is masked by
`embed` and its keys and values are dropped.

Knows names, shapes and types. Knows nothing of sessions, of providers or of how the graphs are made.
"""

from __future__ import annotations

from collections.abc import Collection

from phirt.bundle.manifest import Geometry, StaticShapes

EMBED, PREFILL, DECODE, HEAD = "embed", "prefill", "decode", "head"
STATIC_GRAPHS = (EMBED, PREFILL, DECODE, HEAD)
GATE = "gate."  # and an adapter's name: the input that is 1 where it is active and 0 elsewhere
# What `embed` makes of a run's tokens for the layers, in the order of its outputs.
LAYER_INPUTS = ("inputs_embeds", "cos", "sin", "attention_mask")
_CACHES = ("float32", "float16", "uint16", "uint8", "int8")

# Accepted types and the shape, None for any size, by name.
Tensors = dict[str, tuple[tuple[str, ...], tuple[int | None, ...]]]


def layer_names(num_layers: int) -> tuple[str, ...]:
    """Names of the buffers: "0.key", "0.value", "1.key", …"""
    return tuple(f"{layer}.{part}" for layer in range(num_layers) for part in ("key", "value"))


def static_tensors(
    geometry: Geometry, static: StaticShapes, graph: str, adapters: Collection[str]
) -> tuple[Tensors, Tensors]:
    """What a graph takes and what it gives."""
    width, floats = geometry.hidden_size, ("float32",)
    if graph == HEAD:
        return {"hidden": (floats, (1, 1, width))}, {"logits": (floats, (1, 1, geometry.vocab_size))}
    if graph == EMBED:
        ids, rows, position = (("int64",), (1, None)), (floats, (None, width)), (("int64",), (1,))
        made = ((1, None, width), (1, None, None), (1, None, None), (1, 1, None, None))
        return (
            {"input_ids": ids, "media_features": rows, "position": position},
            {name: (floats, shape) for name, shape in zip(LAYER_INPUTS, made, strict=True)},
        )
    tokens, group = (static.prefill if graph == PREFILL else 1), geometry.num_heads // geometry.num_kv_heads
    taken: Tensors = {
        "inputs_embeds": (floats, (1, tokens, width)),
        "cos": (floats, (1, tokens, None)),
        "sin": (floats, (1, tokens, None)),
        "attention_mask": (floats, (1, 1, group * tokens, static.window + tokens)),
        **{f"{GATE}{name}": (floats, (1,)) for name in adapters},
    }
    given: Tensors = {"hidden": (floats, (1, tokens, width))}
    for name in layer_names(geometry.num_layers):
        shape = (1, geometry.num_kv_heads, static.window, geometry.head_dim)
        taken[f"past_key_values.{name}"] = (_CACHES, shape)
        given[f"present.{name}"] = (_CACHES, (*shape[:2], tokens, shape[3]))
    return taken, given
