"""How much of a written text is in the one that is wanted: ROUGE-L for summaries, BLEU for translations.

ROUGE-L (Lin, 2004) is the F measure, recall and precision weighing the same, over the longest common
subsequence of words. Words are runs of letters and digits in lower case, without stemming: of ASCII text the
words of Google's rouge_score.

BLEU (Papineni et al., 2002) is that of sacrebleu's defaults: tokens as mteval-v13a cuts them, case kept, one
reference, runs of one to four tokens counted over all texts together, a brevity penalty, and 'exp' smoothing:
the n-th order without a match counts as half a match, a quarter, and so on. Both are shares: sacrebleu writes
a hundredfold.

Knows texts. Knows nothing of models or tasks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
_WORD = re.compile(r"[^\W_]+")
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
_SIGNS = re.compile("([" + re.escape("".join(set(string.punctuation) - set("',-."))) + "])")
_POINT_BEHIND = re.compile(r"([^0-9])([.,])")
_POINT_BEFORE = re.compile(r"([.,])([^0-9])")
_DASH = re.compile(r"([0-9])(-)")


def rouge_l(wanted: str, said: str) -> float:
    """The F measure over the longest common subsequence of words; 0 where either has no words."""
    a, b = (_WORD.findall(text.lower()) for text in (wanted, said))
    common = _common(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def bleu_tokens(text: str) -> list[str]:
    """Tokens as mteval-v13a cuts them, for languages of Latin letters."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for name, sign in _ENTITIES.items():
        text = text.replace(name, sign)
    text = _SIGNS.sub(r" \1 ", f" {text} ")
    text = _POINT_BEHIND.sub(r"\1 \2 ", text)
    text = _POINT_BEFORE.sub(r" \1 \2", text)
    return _DASH.sub(r"\1 \2 ", text).split()


@dataclasses.dataclass(frozen=True)
class BleuCounts:
    """What BLEU is made of, for one text or, summed, for many: of each order the runs of tokens that are in
    the wanted text too, and all runs; tokens said and wanted.
    """

    matches: tuple[float, ...]
    runs: tuple[float, ...]
    said: float
    wanted: float


def bleu_counts(wanted: str, said: str) -> BleuCounts:
    """Of one text."""
    a, b = bleu_tokens(wanted), bleu_tokens(said)
    matches, runs = [], []
    for order in range(1, ORDERS + 1):
        known, found = _runs(a, order), _runs(b, order)
        matches.append((known & found).total())
        runs.append(found.total())
    return BleuCounts(tuple(matches), tuple(runs), len(b), len(a))


def _runs(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(itertools.islice(zip(*(tokens[n:] for n in range(order)), strict=False), len(tokens)))


def bleu(counts: BleuCounts) -> float:
    """BLEU of counts that are summed over all texts; 0 where nothing matches, or no text is long enough."""
    if not any(counts.matches) or not all(counts.runs):
        return 0.0
    total, halves = 0.0, 1.0
    for matches, runs in zip(counts.matches, counts.runs, strict=True):
        if not matches:
            halves *= 2
        total += math.log((matches or 1 / halves) / runs)
    short = min(0.0, 1 - counts.wanted / counts.said)
    return math.exp(short + total / ORDERS)
