"""Ranges of the random changes of pictures and recordings; the defaults change nothing.

Knows names and ranges. Knows nothing of pixels or frames: `images` and `audio` make the changes.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from phirt.fields import Range

_Probability = Annotated[float, Range(0.0, 1.0)]


@dataclasses.dataclass(frozen=True)
class ImageAugmentation:
    """How a picture is changed.

    Attributes:
        min_area: smallest share of the picture's area that a crop keeps.
        flip: mirror half of the pictures.
        rotate_degrees: largest rotation to either side.
        color_jitter: strength of brightness, contrast and saturation changes.
        random_erasing: probability of greying out a rectangle (Zhong et al., arXiv 1708.04896).
    """

    min_area: Annotated[float, Range(0.01, 1.0)] = 1.0
    flip: bool = False
    rotate_degrees: Annotated[float, Range(0.0, 180.0)] = 0.0
    color_jitter: Annotated[float, Range(0.0, 0.9)] = 0.0
    random_erasing: _Probability = 0.0


@dataclasses.dataclass(frozen=True)
class AudioAugmentation:
    """How the log-mel frames of a recording are changed.

    Attributes:
        speed: relative change of tempo.
        vocal_tract: relative stretch of the mel axis, as another speaker has (vocal tract length
            perturbation).
        gain: standard deviation of a level change, in nepers of power.
        noise: probability of added stationary noise.
        spec_augment: time and frequency masks a recording (SpecAugment, Park et al., arXiv 1904.08779).
        narrowband: probability of losing everything above 4 kHz, as an 8 kHz recording has.
        edge_frames: most frames that are cut from, or added in silence to, each end.
    """

    speed: Annotated[float, Range(0.0, 1.0)] = 0.0
    vocal_tract: Annotated[float, Range(0.0, 1.0)] = 0.0
    gain: Annotated[float, Range(0.0, 10.0)] = 0.0
    noise: _Probability = 0.0
    spec_augment: Annotated[int, Range(0, 16)] = 0
    narrowband: _Probability = 0.0
    edge_frames: Annotated[int, Range(0, 1000)] = 0


UNCHANGED_IMAGE = ImageAugmentation()
UNCHANGED_AUDIO = AudioAugmentation()
