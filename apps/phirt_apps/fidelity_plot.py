"""A picture of where two models part: KL by place in the text, and by the layer that is quantized.

Knows how figures are drawn. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from phirt.errors import ConfigError

_BINS = 24
_LEAST = 1e-9  # what a logarithmic axis shows of no divergence at all


@dataclasses.dataclass(frozen=True, eq=False)
class Divergences:
    """By route, float64 [positions, 2] of places and KL; by layer, its name and the KL that it costs alone,
    None where that is not known.
    """

    title: str
    by_route: Mapping[str, npt.NDArray[np.float64]]
    by_layer: Sequence[tuple[str, float]] | None


def draw(divergences: Divergences, path: Path) -> None:
    """Writes the picture. Raises ConfigError where the file cannot be written or names no format."""
    panels = 1 if divergences.by_layer is None else 2
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.5, 3.4 * panels), dpi=150, layout="constrained")
        axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
        figure.suptitle(divergences.title)
        _draw_places(axes[0], divergences.by_route)
        if divergences.by_layer is not None:
            _draw_layers(axes[1], divergences.by_layer)
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be written as a picture: {error}; name a .png file") from error


def _draw_places(axes: Any, by_route: Mapping[str, npt.NDArray[np.float64]]) -> None:
    for color, (route, of) in enumerate(by_route.items()):
        places, kl = of[:, 0], np.maximum(of[:, 1], _LEAST)
        axes.plot(places, kl, ".", color=f"C{color}", markersize=2, alpha=0.25)
        centres, means = _binned(places, kl)
        axes.plot(centres, means, "o-", color=f"C{color}", markersize=3, label=f"mean, route {route}")
    axes.set_yscale("log")
    axes.set_xlabel("place in the window or answer, in tokens")
    axes.set_ylabel("KL, nats")
    axes.legend(frameon=False)


def _binned(places: npt.NDArray[np.float64], kl: npt.NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Mean place and mean KL of at most _BINS ranges of places."""
    edges = np.linspace(places.min(), places.max() + 1, _BINS + 1)
    bins = np.digitize(places, edges)
    kept = [bins == index for index in np.unique(bins)]
    return [float(places[at].mean()) for at in kept], [float(kl[at].mean()) for at in kept]


def _draw_layers(axes: Any, by_layer: Sequence[tuple[str, float]]) -> None:
    names, values = zip(*by_layer, strict=True)
    axes.bar(range(len(names)), values, color=["C0" if name.isdecimal() else "C1" for name in names])
    step = max(1, len(names) // 16)
    shown = [i for i, name in enumerate(names) if not name.isdecimal() or int(name) % step == 0]
    axes.set_xticks(shown, [names[i] for i in shown])
    for place, label in zip(shown, axes.get_xticklabels(), strict=True):
        if not label.get_text().isdecimal():  # the ends, away from the numbers
            label.set_horizontalalignment("center" if place else "right")
    axes.set_xlabel("what is quantized while all else is in float32: a layer, the table, the head")
    axes.set_ylabel("mean KL, nats")
