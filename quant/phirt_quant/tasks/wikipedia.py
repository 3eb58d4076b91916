"""Pages of Wikipedia: how well each is predicted as a whole."""

from phirt_quant.tasks.task import Document, Task

TASK = Task(
    "text/wikipedia.val.jsonl",
    lambda record: [Document(f"{record['title']}\n\n{record['text']}")],
    ("bits_per_byte", "byte_perplexity", "word_perplexity"),
)
