"""What stages minimise, by the name a recipe gives."""

from collections.abc import Callable

from phirt_export.reference import Model
from phirt_train.context import TrainingContext
from phirt_train.loop import Objective
from phirt_train.objectives.image_classes import ImageClasses
from phirt_train.objectives.language import Language
from phirt_train.objectives.media_answers import MediaAnswers
from phirt_train.objectives.transcripts import Transcripts
from phirt_train.recipe import StageConfig

OBJECTIVES: dict[str, Callable[[Model, StageConfig, TrainingContext], Objective]] = {
    "image_classes": ImageClasses,
    "language": Language,
    "media_answers": MediaAnswers,
    "transcripts": Transcripts,
}
