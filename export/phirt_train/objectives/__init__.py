"""What stages minimise, by the name a recipe gives."""

from phirt_train.objectives.image_classes import ImageClasses
from phirt_train.objectives.language import Language
from phirt_train.objectives.media_answers import MediaAnswers
from phirt_train.objectives.transcripts import Transcripts

OBJECTIVES = {
    "image_classes": ImageClasses,
    "language": Language,
    "media_answers": MediaAnswers,
    "transcripts": Transcripts,
}
