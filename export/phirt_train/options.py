"""What a stage of each objective may say about its data: one frozen class an objective.

Knows names, types and ranges. Knows nothing of files, tensors or models, so that a recipe is checked before
anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from phirt.errors import ConfigError

Shares = Mapping[str, float]  # relative weights by source; they need not add up to one


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes of a photo; the defaults change nothing.

    Attributes:
        min_area: smallest share of the photo's area that a crop keeps.
        flip: mirror half of the photos.
        degrees: largest rotation to either side.
        shade: strength of brightness, contrast and colour changes.
        erase: probability of greying out a rectangle.
    """

    min_area: float = 1.0
    flip: bool = False
    degrees: float = 0.0
    shade: float = 0.0
    erase: float = 0.0


@dataclasses.dataclass(frozen=True)
class Warp:
    """Ranges of the random changes of a clip; the defaults change nothing.

    Attributes:
        speed: relative change of tempo.
        mel: relative stretch of the mel axis (another vocal tract).
        gain: standard deviation of a level change, in nepers of power.
        noise: probability of added stationary noise.
        masks: time and frequency masks a clip.
        narrow: probability of losing everything above 4 kHz, as an 8 kHz recording has.
        edges: most frames that are cut from, or added in silence to, each end of a clip.
    """

    speed: float = 0.0
    mel: float = 0.0
    gain: float = 0.0
    noise: float = 0.0
    masks: int = 0
    narrow: float = 0.0
    edges: int = 0


def _check_shares(name: str, shares: Shares, required: bool = True) -> None:
    if required and not shares:
        raise ConfigError(f"{name} is empty; accepted: a share for each source")
    wrong = {source: share for source, share in shares.items() if not share > 0}
    if wrong:
        raise ConfigError(f"{name} holds {wrong}; accepted: shares above 0, or leave the source out")


@dataclasses.dataclass(frozen=True)
class LanguageData:
    """Rows of `row_tokens` tokens, a share of them from `documents`, the rest whole `chats`."""

    row_tokens: int
    documents: Shares = dataclasses.field(default_factory=dict)
    chats: Shares = dataclasses.field(default_factory=dict)
    document_share: float = 1.0

    def __post_init__(self) -> None:
        _check_shares("documents", self.documents, required=self.document_share > 0)
        _check_shares("chats", self.chats, required=self.document_share < 1)


@dataclasses.dataclass(frozen=True)
class ImageClassData:
    """Pictures to classify.

    Attributes:
        sources: share of each source of pictures.
        resolutions: (share of the steps, side in pixels): the crop's side from that point on.
        augment: random changes of photos.
        mix: probability of mixing the pictures of a source in pairs.
        rendered: how many pictures of each rendered source are drawn.
    """

    sources: Shares
    resolutions: tuple[tuple[float, int], ...]
    augment: Augmentation
    mix: float = 0.0
    rendered: int = 0

    def __post_init__(self) -> None:
        _check_shares("sources", self.sources)


@dataclasses.dataclass(frozen=True)
class TranscriptData:
    """Clips to spell: each source's share, and how many clips of each synthesised source are spoken."""

    sources: Shares
    synthetic: Mapping[str, int]
    warp: Warp

    def __post_init__(self) -> None:
        _check_shares("sources", self.sources)


@dataclasses.dataclass(frozen=True)
class MediaAnswerData:
    """Questions about pictures and clips, answered by the language model.

    Attributes:
        route: LoRA route of the answers.
        pictures, clips: share of each source; with both, a clip stands beside a picture.
        pictures_alone: with clips, the share of batches without any.
        two_pictures: share of batches whose samples show two pictures in a turn.
        follow_ups: share of batches in which a picture is followed by a turn with a `picture` or a `clip`, or
            by `text` alone, with clips often after one.
        rendered, synthetic: sizes of the rendered and of the synthesised sources.
        augment, warp: random changes of photos and of clips.
        start_projector_from: the audio projector that the `vision` one is copied from before training.
    """

    route: str
    pictures: Shares = dataclasses.field(default_factory=dict)
    clips: Shares = dataclasses.field(default_factory=dict)
    pictures_alone: float = 0.0
    two_pictures: float = 0.0
    follow_ups: Shares = dataclasses.field(default_factory=dict)
    rendered: int = 0
    synthetic: Mapping[str, int] = dataclasses.field(default_factory=dict)
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)
    warp: Warp = dataclasses.field(default_factory=Warp)
    start_projector_from: str = ""

    def __post_init__(self) -> None:
        if self.route not in ("vision", "speech"):
            raise ConfigError(f"route is {self.route!r}; accepted: vision, speech")
        if not self.pictures and not self.clips:
            raise ConfigError("neither pictures nor clips are given; accepted: shares of at least one")
        _check_shares("pictures", self.pictures, required=False)
        _check_shares("clips", self.clips, required=False)
        _check_shares("follow_ups", self.follow_ups, required=False)
        if set(self.follow_ups) - {"picture", "clip", "text"} or sum(self.follow_ups.values()) > 1:
            raise ConfigError(
                f"follow_ups is {dict(self.follow_ups)}; accepted: picture, clip and text, together at most 1"
            )


StageData = LanguageData | ImageClassData | TranscriptData | MediaAnswerData
STAGE_DATA: dict[str, type[StageData]] = {
    "language": LanguageData,
    "image_classes": ImageClassData,
    "transcripts": TranscriptData,
    "media_answers": MediaAnswerData,
}
