"""What stages minimise, by the name a recipe gives."""

from phirt_export.train.objectives.image_classes import ImageClasses
from phirt_export.train.objectives.language import Language
from phirt_export.train.objectives.media_answers import MediaAnswers
from phirt_export.train.objectives.transcripts import Transcripts

OBJECTIVES = {
    "image_classes": ImageClasses,
    "language": Language,
    "media_answers": MediaAnswers,
    "transcripts": Transcripts,
}
