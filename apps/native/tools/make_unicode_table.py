"""Writes `src/unicode_table.inc`: the general category of every code point, as the `tokenizers` library has
it.

Knows the library's regular expressions. The table is asked of the library itself and not taken from Python's
`unicodedata`, which may know another version of Unicode: a letter of 2024 must fall into the same word in
both. Run it again when the library's Unicode changes: `python apps/native/tools/make_unicode_table.py`.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, pre_tokenizers

CATEGORIES = tuple(
    "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn Cs".split()  # noqa: SIM905
)
TARGET = Path(__file__).resolve().parents[1] / "src" / "unicode_table.inc"
_CHUNK = 20_000
_PER_LINE = 10


def members(pattern: str, code_points: list[int]) -> set[int]:
    """The code points that a pattern for one character matches."""
    remove = pre_tokenizers.Split(Regex(pattern), "removed")
    kept: set[str] = set()
    for start in range(0, len(code_points), _CHUNK):
        text = "".join(map(chr, code_points[start : start + _CHUNK]))
        kept.update("".join(piece for piece, _ in remove.pre_tokenize_str(text)))
    return {point for point in code_points if chr(point) not in kept}


def table() -> list[tuple[int, str]]:
    """(first code point, category) for every run of one category, in order."""
    code_points = [point for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
    category = dict.fromkeys(range(0x110000), "Cs")
    for name in CATEGORIES[:-1]:
        category.update(dict.fromkeys(members(rf"\p{{{name}}}", code_points), name))
    runs: list[tuple[int, str]] = []
    for point in range(0x110000):
        if not runs or runs[-1][1] != category[point]:
            runs.append((point, category[point]))
    return runs


def main() -> None:
    """Writes the table: each entry is `first << 5 | number of the category`, so one word a run."""
    entries = [f"0x{first << 5 | CATEGORIES.index(name):07x}" for first, name in table()]
    lines = [", ".join(entries[at : at + _PER_LINE]) for at in range(0, len(entries), _PER_LINE)]
    head = "// Made by tools/make_unicode_table.py: first code point << 5 | number of the category.\n"
    TARGET.write_text(head + ",\n".join(lines) + "\n", "ascii")
    print(f"{TARGET}: {len(entries)} runs")


if __name__ == "__main__":
    main()
