"""`phirt curate` from a file to shards and a report: by hand, continued, on Ray, and wrong in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phirt.errors import ConfigError
from phirt_apps.cli import app
from phirt_train.curate import pipeline
from phirt_train.curate.config import load_config
from phirt_train.curate.examination import Examination, ShardCounts, examine
from phirt_train.curate.executor import Executor, InProcess
from phirt_train.curate.pipeline import curate

Lines = Callable[..., Path]
PROSE = (
    "The {0} of the valley was {0} long before the road, and those who {0} there keep its name to this day."
)
QUESTION = "what would you have to carry up the hill if the well of the village had run dry"
CONFIG = """
shard_megabytes = 0.002
[[source]]
name = "pages"
files = ["pages.jsonl"]
quality = {{ languages = ["en"], rules = "any" }}
[[source]]
name = "more"
files = ["more*.jsonl"]
template = "{{title}}. {{text}}"
quality = {{ rules = "none" }}
[[evaluation]]
name = "asked"
files = ["asked.jsonl"]
template = "{{question}}"
[length]
long_from = 400
{extra}
"""


def _prose(word: str, sentences: int = 4) -> str:
    return " ".join(PROSE.format(f"{word}{n}") for n in range(sentences))


@pytest.fixture
def data(tmp_path: Path, lines: Lines) -> Path:
    """Twelve good pages, and one of each kind that goes."""
    pages: list[object] = [{"text": _prose(f"mill{n}x")} for n in range(12)]
    pages += [
        {"text": _prose("mill3x").upper()},  # the same words
        {"text": "Le moulin de la vallée est dans le village, et il ne sait pas qui est avec lui."},
        {"text": "Too short."},
        {"text": QUESTION},
        {"other": 1},
        {"text": _prose("ford", 20)},  # long
    ]
    lines("pages.jsonl", *pages)
    with (tmp_path / "pages.jsonl").open("a") as file:
        file.write("no json\n")
    near = _prose("ford", 20).replace("ford7 ", "bridge ")
    lines("more1.jsonl", {"title": "A", "text": near}, {"title": "B", "text": _prose("barn")})
    lines("asked.jsonl", {"question": QUESTION})
    (tmp_path / "web.toml").write_text(CONFIG.format(extra=""), encoding="utf-8")
    return tmp_path


def _run(data: Path, out: Path, executor: Executor | None = None) -> None:
    curate(load_config(data / "web.toml"), data, out, executor or InProcess())


def _files(folder: Path) -> dict[str, bytes]:
    """What came of it; keys, whose archive has times in it, by their names alone."""
    return {
        str(path.relative_to(folder)): b"" if path.suffix == ".npz" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _texts(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for path in sorted(folder.glob("*.jsonl")) for line in path.open()]


def test_the_command(data: Path) -> None:
    out = data / "out"
    done = CliRunner().invoke(app, ["curate", str(data / "web.toml"), "-o", str(out)])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == (out / "report.md").read_text(encoding="utf-8")
    assert _texts(out / "pages") == [_prose(f"mill{n}x") for n in range(12)]
    assert _texts(out / "pages.long") == [_prose("ford", 20)]
    assert _texts(out / "more") == ["B. " + _prose("barn")]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    pages, more = report["sources"]
    assert pages["documents"] == 19 and pages["kept"] == 13
    assert pages["dropped"] == {
        "duplicate: the same words": 1,
        "language: fr": 1,
        "language: unknown": 1,
        "contaminated: nothing is left": 1,
        "unreadable: a field of the template is missing": 1,
        "unreadable: no JSON": 1,
    }
    assert more["dropped"] == {"duplicate: nearly the same words": 1}
    assert report["evaluation"] == [
        {"name": "asked", "texts": 1, "shorter_than_a_run": 0, "hits": 6, "documents": 1}
    ]
    assert {one["source"] for one in report["mixture"]} == {"pages", "pages.long", "more"}
    dropped = [json.loads(line) for path in sorted((out / "dropped").iterdir()) for line in path.open()]
    assert len(dropped) == 7 and {one["begins"][:9] for one in dropped} >= {"Too short", "Le moulin"}


def test_what_is_done_is_not_done_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the third shard, the same command reads the rest alone, and ends as if it had not been."""
    _run(data, data / "whole")
    read: list[str] = []

    def stopping(task: Examination) -> ShardCounts:
        if len(read) == 2:
            read.append("stopped")
            raise KeyboardInterrupt
        read.append(task.stem)
        return examine(task)

    monkeypatch.setattr(pipeline, "examine", stopping)
    with pytest.raises(KeyboardInterrupt):
        _run(data, data / "out")
    _run(data, data / "out")
    stems = [path.stem for path in sorted((data / "out" / "work").glob("*-?????.json"))]
    assert len(stems) > 3 and sorted(one for one in read if one != "stopped") == stems
    assert _files(data / "out") == _files(data / "whole")


def test_the_same_files_on_ray(data: Path, four_workers: Executor) -> None:
    _run(data, data / "here")
    _run(data, data / "there", four_workers)
    assert _files(data / "here") == _files(data / "there")


def test_a_classifier_is_trained_and_keeps_the_best(data: Path, lines: Lines) -> None:
    lines("good.jsonl", *({"text": _prose(f"lake{n}")} for n in range(60)))
    lines(
        "bad.jsonl", *({"text": f"Buy {n} now! Free offer {n}, click here, best price."} for n in range(60))
    )
    lines(
        "pages.jsonl", *({"text": t} for t in (_prose("mill"), "Click here, buy now for free: best offer!"))
    )
    extra = """
[classifier]
positive = [{ files = ["good.jsonl"] }]
negative = [{ files = ["bad.jsonl"] }]
keep = 0.5
sources = ["pages"]
training = { features = 4096, blocks = 2, iterations = 20 }
"""
    (data / "web.toml").write_text(CONFIG.format(extra=extra), encoding="utf-8")
    _run(data, data / "out")
    assert _texts(data / "out" / "pages") == [_prose("mill")]
    report = json.loads((data / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["classifier"]["auc"] == 1.0 and report["thresholds"]["pages"] > 0.5
    again = 'classifier = { folder = "out/classifier", keep = 0.5, sources = ["pages"] }'
    (data / "again.toml").write_text(again + "\n" + CONFIG.format(extra=""), encoding="utf-8")
    curate(load_config(data / "again.toml"), data, data / "second", InProcess())
    assert _texts(data / "second" / "pages") == [_prose("mill")]


def test_what_a_source_leaves_a_later_one_has(data: Path, lines: Lines) -> None:
    """The best of the same files as a source: the rest is not lost as copies of what scored low."""
    texts = [_prose("lake1"), "Click here, buy now for free: best offer of all that we have!"]
    lines("pages.jsonl", *({"text": text} for text in texts))
    lines("more1.jsonl", *({"title": "", "text": text} for text in texts))
    lines("good.jsonl", *({"text": _prose(f"lake{n}")} for n in range(60)))
    lines(
        "bad.jsonl", *({"text": f"Buy {n} now! Free offer {n}, click here, best price."} for n in range(60))
    )
    extra = """
[classifier]
positive = [{ files = ["good.jsonl"] }]
negative = [{ files = ["bad.jsonl"] }]
sources = ["pages"]
training = { features = 4096, blocks = 2, iterations = 20 }
"""
    (data / "web.toml").write_text(CONFIG.format(extra=extra), encoding="utf-8")
    _run(data, data / "out")
    assert _texts(data / "out" / "pages") == texts[:1]
    assert _texts(data / "out" / "more") == [f". {texts[1]}"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("pages.jsonl", "nothing.jsonl"), "source pages names nothing.jsonl, and"),
        (("asked.jsonl", "gone.jsonl"), "evaluation set asked names gone.jsonl, and"),
        (("{question}", "{quest}"), "evaluation set asked has no record with the fields of '{quest}'"),
        (('"more"', '"pages"'), "two of kind source are called pages"),
        (('"more"', '"work"'), "a source cannot be called work"),
        (("{title}. {text}", "title"), "names no field in braces"),
        (
            ('rules = "any"', 'rules = "nice"'),
            "'nice' is no set of rules that is known, accepted: prose, any",
        ),
        (("long_from = 400", "long_form = 400"), "'long_form' is not known here, accepted: least, most"),
        (("[length]", "[length"), "is no TOML"),
        (
            ("[length]", "[mixture.shares]\nbooks = 1\n[length]"),
            "'books' is no source, accepted: pages, more",
        ),
        (
            ("[length]", "[classifier]\nkeep = 0.5\n[length]"),
            "a classifier is either taken from a 'folder' or",
        ),
        (("[length]", "[classifier]\nfolder = 'x'\n[length]"), "holds no classifier"),
        (("shard_mega", "tokenizer = 'web.toml'\nshard_mega"), "is no tokenizer"),
    ],
)
def test_mistakes_end_in_one_line(data: Path, change: tuple[str, str], says: str) -> None:
    path = data / "web.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    done = CliRunner().invoke(app, ["curate", str(path), "-o", str(data / "out")])
    assert done.exit_code == 1 and done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and says in last


def test_a_folder_of_something_else_is_left_alone(data: Path) -> None:
    _run(data, data / "out")
    before = _files(data / "out")
    path = data / "web.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("400", "300"), encoding="utf-8")
    done = CliRunner().invoke(app, ["curate", str(path), "-o", str(data / "out")])
    assert done.exit_code == 1 and "holds what came of other settings or data" in done.stderr
    assert _files(data / "out") == before
    done = CliRunner().invoke(app, ["curate", str(path), "-o", str(data)])
    assert done.exit_code == 1 and "is not empty, and nothing in it is of this command" in done.stderr


@pytest.mark.parametrize("changed", ["asked.jsonl", "tokenizer.json", "old/facts.json", "good.jsonl"])
def test_every_file_that_is_read_belongs_to_the_folder(data: Path, changed: str) -> None:
    """Pages were cleaned of an evaluation set that has changed since: that result is not taken again."""
    classifier = 'positive = [{ files = ["good.jsonl"] }]\nmade = ["corruptions"]'
    classifier = classifier if changed == "good.jsonl" else 'folder = "old"'
    text = 'tokenizer = "tokenizer.json"\n' + CONFIG.format(extra=f"[classifier]\n{classifier}")
    (data / "web.toml").write_text(text, encoding="utf-8")
    (data / "old").mkdir()
    for name in ("tokenizer.json", "old/facts.json", "good.jsonl"):
        (data / name).write_text("{}", encoding="utf-8")
    config = load_config(data / "web.toml")
    pipeline._claim(data / "out", config, pipeline.files_read(config, data))
    pipeline._claim(data / "out", config, pipeline.files_read(config, data))
    (data / changed).write_text("{ }", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds what came of other settings or data"):
        pipeline._claim(data / "out", config, pipeline.files_read(config, data))


def test_an_evaluation_set_that_changes_is_noticed(data: Path, lines: Lines) -> None:
    _run(data, data / "out")
    lines("asked.jsonl", {"question": _prose("mill4x", 1)})
    with pytest.raises(ConfigError, match="holds what came of other settings or data"):
        _run(data, data / "out")


def test_neither_torch_nor_ray_is_loaded_for_it() -> None:
    code = "import sys, phirt_train.curate.pipeline; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_workers_without_ray(data: Path) -> None:
    done = CliRunner().invoke(app, ["curate", str(data / "web.toml"), "--workers", "2"])
    assert done.exit_code == 2 and "give --ray local too" in done.stderr
