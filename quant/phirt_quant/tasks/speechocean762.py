"""speechocean762 (arXiv 2104.01378): sentences that speakers of Mandarin read aloud, written down."""

from phirt_quant.tasks.task import Record, Recording, Task


def _recordings(record: Record) -> list[Recording]:
    return [Recording(record["file"], record["text"])] if record["text"] else []


TASK = Task("speech/speechocean762.val.jsonl", _recordings, ("wer",))
