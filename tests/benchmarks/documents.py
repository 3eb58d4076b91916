"""How often `phirt chat --docs` cites the right page: 30 questions over 20 pages of an encyclopedia.

    python tests/benchmarks/documents.py PAGES.jsonl.xz [--embedder BUNDLE] [--model BUNDLE] [--answers]

PAGES has a JSON object with `title` and `text` on each line; the 20 pages named below are taken from it,
written as text, Markdown and PDF files that are named by numbers alone. A page is cited where a passage of it
is among those that the answer was given, which are what is printed behind it; how often it is the first of
them is told too, and with --answers how often the sources printed behind real answers hold it. At last one
page is changed and another file is hostile.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import sys
import tempfile
import textwrap
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "documents"))
from pdf_file import pdf

# The questions were written from the pages, before anything was measured, and not changed afterwards.
QUESTIONS = (
    ("Capybara", "Which is the biggest rodent alive today?"),
    ("Capybara", "How long can a capybara stay under water without breathing?"),
    ("Arctic fox", "How does the white fox keep from losing heat in the cold?"),
    ("Arctic fox", "Which rodents are the main food of the polar fox in the tundra?"),
    ("Komodo dragon", "Which lizard inspired the film King Kong?"),
    ("Komodo dragon", "For how many months are the dragon's eggs incubated?"),
    ("Cerberus", "How many heads does Hesiod give to the hound of Hades?"),
    ("Cerberus", "Who was bound to the Chair of Forgetfulness?"),
    ("Jacquard loom", "Which weaving machine was controlled by punched cards?"),
    ("Cyrix 6x86", "Why did the 6x86 run Quake slower than the Pentium?"),
    ("Cyrix 6x86", "Which processor called itself a 80486 and disabled CPUID?"),
    ("Acetylene", "Who accidentally discovered acetylene in 1836?"),
    ("Acetylene", "Which gas burned in the lamps of miners and early cars?"),
    ("2016 Oakland warehouse fire", "How many people died at Ghost Ship?"),
    ("2016 Oakland warehouse fire", "Who was the youngest victim of the fire at the concert?"),
    ("Lunar Roving Vehicle", "On which Apollo missions was a car driven on the Moon?"),
    ("Balmoral Castle", "How much did Prince Albert pay for his Scottish estate?"),
    ("Balmoral Castle", "From which stone is the royal house in Aberdeenshire built?"),
    ("Porsche 356", "Who designed the body of the first Porsche production car?"),
    ("Porsche 356", "What was the Reutter company's seat business renamed to?"),
    ("Stella Artois", "Which beer was first brewed as a Christmas beer?"),
    ("Fahrenheit", "At how many degrees does brine freeze on Rømer's scale?"),
    ("LALR parser", "Who invented the LR parser in 1965?"),
    ("LALR parser", "Which kind of conflicts come from merging states of a parser?"),
    ("Yukon River Basin", "How does the wood frog survive the cold winters?"),
    ("Great Dane Trailers", "Which company built refrigerated trailers for trucks after the war?"),
    ("Radiocarbon dating", "How did nuclear bomb tests change carbon in the atmosphere?"),
    ("Bodyline", "How was Donald Bradman's scoring to be stopped?"),
    ("Colt Express", "In which board game do bandits rob a train?"),
    ("Dream Team (law)", "Who said that if the glove does not fit, you must acquit?"),
)
SETTINGS = {"max_new_tokens": 48}


def write_pages(source: Path, folder: Path) -> dict[str, str]:
    """Writes the pages, each in one of three kinds; returns the file of each title."""
    titles = list(dict.fromkeys(title for title, _ in QUESTIONS))
    with lzma.open(source, "rt", encoding="utf-8") as lines:
        texts = {page["title"]: page["text"] for page in map(json.loads, lines)}
    files = {}
    for number, title in enumerate(titles):
        kind = ("txt", "md", "pdf")[number % 3]
        files[title] = f"page-{number:02d}.{kind}"
        path, text = folder / files[title], texts[title]
        if kind == "pdf":
            printed = [line for part in text.split("\n") for line in textwrap.wrap(part, 100) or [""]]
            path.write_bytes(pdf([printed[at : at + 60] for at in range(0, len(printed), 60)]))
        else:
            path.write_text(f"# {title}\n\n{text}" if kind == "md" else text, encoding="utf-8")
    return files


def main() -> None:
    """Measures, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pages", type=Path)
    parser.add_argument("--embedder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--answers", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PHIRT_CACHE"] = f"{scratch}/cache"
        folder = Path(scratch, "pages")
        folder.mkdir()
        measure(write_pages(options.pages, folder), folder, options)


def measure(files: dict[str, str], folder: Path, options: argparse.Namespace) -> None:
    """Asks all questions, each in a conversation of its own."""
    import phirt
    from phirt_apps.answer import Request
    from phirt_apps.documents.library import Library
    from phirt_apps.documents.prompt import as_objects
    from phirt_apps.output import Output

    model = phirt.load(options.model)
    said = io.StringIO()
    out = Output(io.StringIO(), said)
    first = given = shown = 0
    begin = time.perf_counter()
    with Library(folder, options.embedder, out) as library:
        library.refresh()
        print(said.getvalue().strip(), f"in {time.perf_counter() - begin:.1f} s")
    begin = time.perf_counter()
    for title, question in QUESTIONS:
        with Library(folder, options.embedder, out) as library:
            chat = model.chat()
            request, citations = library.ask(Request(question, SETTINGS), chat)
        places = [one.file for one in citations]
        right = files[title]
        first += places[:1] == [right]
        given += right in places
        line = f"{'ok  ' if right in places else 'MISS'} {right} {places} {question}"
        if options.answers:
            answer = request.send(chat, lambda progress: None).text()
            rows = as_objects(answer, citations)
            sources = {row["file"] for row in rows if row["cited"]} or set(places)
            shown += right in sources
            line += f"\n       {answer!r}"
        print(line)
    total = len(QUESTIONS)
    print(f"{total} questions, {time.perf_counter() - begin:.1f} s")
    print(f"the right page is the first cited: {first} ({first / total:.1%})")
    print(f"the right page is cited: {given} ({given / total:.1%})")
    if options.answers:
        print(f"the right page is among the sources printed behind the answer: {shown} ({shown / total:.1%})")
    changes(folder, options.embedder, model.chat(), said, out)


def changes(folder: Path, embedder: Path | None, chat: object, said: io.StringIO, out: object) -> None:
    """A page changes and a hostile PDF comes while a folder is open."""
    from phirt_apps.answer import Request
    from phirt_apps.documents.library import Library

    with Library(folder, embedder, out) as library:
        library.refresh()
        (folder / "page-00.txt").write_text("The office of the harbour master opens at half past seven.")
        (folder / "hostile.pdf").write_bytes(b"%PDF-1.7\n" + b"1 0 obj << /Kids [1 0 R] >> endobj\n" * 1000)
        said.seek(0)
        said.truncate()
        _, citations = library.ask(Request("When does the harbour master open?", SETTINGS), chat)
    print("changed file noticed:", bool(citations) and citations[0].file == "page-00.txt")
    print("what was said:", *said.getvalue().splitlines(), sep="\n  ")


if __name__ == "__main__":
    main()
