"""A family that the tests add with the kind that it needs: a Llama decoder that knows mean colours."""

from __future__ import annotations

import dataclasses

from phirt.bundle.manifest import EncoderSpec
from phirt_export.encoders import EncoderPlan
from phirt_export.families import llama
from phirt_export.graphs.encoder import EncoderParts
from phirt_export.graphs.linear import WeightStore
from phirt_export.graphs.weight_format import WeightFormat
from phirt_export.published.layout import Layout, Part, Published


def read(published: Published) -> Layout:
    """A Llama checkpoint with one linear layer, `colours.projector`, beside it."""
    text = llama.read(published)
    image = published.config.integer("image_token_id", 0)
    hidden = text.config.decoder.hidden_size
    spec = EncoderSpec("mean_colour", "image", "colours", image, ("colours",), {"white": 255.0})
    shapes = {"colours.projector.weight": (hidden, 3), "colours.projector.bias": (hidden,)}
    return Layout(
        dataclasses.replace(text.config, tokens=dataclasses.replace(text.config.tokens, image=image)),
        lambda name: (Part(name),) if name in shapes else text.parts(name),
        text.ignores,
        encoders=(EncoderPlan("colours", spec, _build, shapes),),
    )


def _build(store: WeightStore, hidden: int, form: WeightFormat) -> None:
    colour = store.g.input("colour", "float32", [1, 3])
    features = EncoderParts(store, WeightFormat(32), "colours").linear(colour, "projector", "projector")
    store.g.output(features, "image_features", "float32", [1, hidden])
