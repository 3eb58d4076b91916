"""Free Spoken Digit Dataset: single digits, of speakers that its training part has too."""

from phirt_quant.tasks.task import Recording, Task

TASK = Task("speech/fsdd.val.jsonl", lambda record: [Recording(record["file"], record["text"])], ("wer",))
