"""One-shot commands on a small bundle with random weights: streams, JSON, figures, stdin, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from phirt_apps.cli import app


def test_an_answer_goes_to_stdout_and_nothing_else(invoke) -> None:
    whole = invoke("chat", "the quick", "--max-new-tokens", 12)
    result = invoke("chat", "the quick", "--max-new-tokens", 12, "--stop", whole.stdout[8:10])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("\n") and whole.stdout.startswith(result.stdout.strip())


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_cut_answer_says_so(invoke, long_bundle: Path, as_json: list[str]) -> None:
    """Case 04: at the limit of new tokens, and at the end of the context of 1,024 tokens."""
    result = invoke("chat", "the quick", "--max-new-tokens", 12, *as_json)
    assert (result.exit_code, result.stderr) == (0, "cut at 12 new tokens; --max-new-tokens N allows more\n")
    full = ["chat", "-m", str(long_bundle), "--max-new-tokens", "500", *as_json]
    for length in (990, _fitting(long_bundle)):
        result = CliRunner().invoke(app, full, input="x" * length)
        assert result.exit_code == 0
        last = result.stderr.splitlines()[-1]
        assert last.startswith("cut, as the model's context of 1024 tokens is full; ")


def _fitting(bundle: Path) -> int:
    """How many letters fill the context with their prompt alone."""
    counted = CliRunner().invoke(app, ["tokens", "-m", str(bundle), "--json"], input="x")
    return 1024 - json.loads(counted.stdout)["total"] + 1


def test_json_is_one_object_with_every_key(invoke) -> None:
    result = invoke("chat", "the quick", "--max-new-tokens", 5, "--json")
    value = json.loads(result.stdout)
    assert set(value) == {
        *(
            "text",
            "ids",
            "prompt_ids",
            "route",
            "finish_reason",
            "usage",
            "timings",
            "tokens_per_second",
            "tool_calls",
        )
    }
    assert (result.exit_code, result.stderr.count("\n"), result.stdout.count("\n")) == (0, 1, 1)
    assert len(value["ids"]) == 5 and value["finish_reason"] == "length" and value["route"] == "none"
    assert value["usage"]["prompt_tokens"] == len(value["prompt_ids"])
    assert value["timings"]["total"] >= value["timings"]["first_token"] > 0


def test_json_and_text_say_the_same(invoke) -> None:
    text = invoke("chat", "fox", "--max-new-tokens", 9).stdout
    value = json.loads(invoke("chat", "fox", "--max-new-tokens", 9, "--json").stdout)
    assert text == value["text"] + "\n"


@pytest.mark.parametrize(
    ("media", "route"),
    [
        ([], "none"),
        (["--image", "shapes.png"], "vision"),
        (["--image", "shapes.png", "--image", "shapes.png"], "vision"),
        (["--audio", "seven.flac"], "speech"),
        (["--audio", "seven.flac", "--image", "shapes.png"], "vision"),
    ],
)
def test_media_choose_the_route_and_are_counted(invoke, examples: Path, media: list[str], route: str) -> None:
    arguments = [str(examples / word) if "." in word else word for word in media]
    value = json.loads(invoke("chat", *arguments, "what is this", "--max-new-tokens", 3, "--json").stdout)
    count = json.loads(invoke("tokens", *arguments, "what is this", "--json").stdout)
    assert value["route"] == count["route"] == route
    assert count["total"] == value["usage"]["prompt_tokens"] == len(value["prompt_ids"])
    assert sum(count["images"]) == value["usage"]["image_tokens"] == value["prompt_ids"].count(1)
    assert sum(count["audio"]) == value["usage"]["audio_tokens"] == value["prompt_ids"].count(2)
    assert count["total"] == count["text"] + sum(count["images"]) + sum(count["audio"])
    assert len(count["images"]) == media.count("--image") and len(count["audio"]) == media.count("--audio")


def test_a_seed_repeats_and_another_differs(invoke) -> None:
    def sample(seed: int) -> list[int]:
        options = ("--temperature", 5, "--seed", seed, "--max-new-tokens", 20, "--json")
        return json.loads(invoke("chat", "dog", *options).stdout)["ids"]

    assert sample(1) == sample(1) != sample(2)


def test_stop_ends_before_its_text(invoke) -> None:
    whole = invoke("chat", "lazy", "--max-new-tokens", 30).stdout.rstrip("\n")
    stop = whole[4:6]
    value = json.loads(invoke("chat", "lazy", "--max-new-tokens", 30, "--stop", stop, "--json").stdout)
    assert value["text"] == whole[: whole.index(stop)]
    assert value["finish_reason"] == "stop"


def test_system_and_tools_reach_the_prompt(invoke, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "search", "parameters": {}}]')
    bare = json.loads(invoke("chat", "dog", "--max-new-tokens", 1, "--json").stdout)
    full = json.loads(
        invoke("chat", "dog", "--system", "fox", "--tools", tools, "--max-new-tokens", 1, "--json").stdout
    )
    assert full["prompt_ids"][-len(bare["prompt_ids"]) :] == bare["prompt_ids"]
    assert {6, 7, 8} <= set(full["prompt_ids"])  # <|system|>, <|tool|>, <|/tool|>
    assert not {6, 7, 8} & set(bare["prompt_ids"])


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"nome": 1}]', "no json", '[{"name": ' + "[" * 100_000])
def test_bad_tools_are_one_line(invoke, tmp_path: Path, content: str) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(content)
    result = invoke("chat", "dog", "--tools", tools)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: the tools ") and result.stderr.count("\n") == 1


def test_stats_go_to_stderr(invoke, examples: Path) -> None:
    result = invoke("chat", "--image", examples / "shapes.png", "what", "--max-new-tokens", 4, "--stats")
    assert result.exit_code == 0
    for word in (
        "first token",
        "prefill",
        "tokens/s",
        "decode",
        "speculation",
        "image",
        "cached",
        "peak memory",
    ):
        assert word in result.stderr and word not in result.stdout


def test_speculation_can_be_switched_off(invoke) -> None:
    command = ("chat", "the quick the quick", "--max-new-tokens", 60, "--json")
    with_, without = (
        json.loads(invoke(*command, switch).stdout) for switch in ("--speculation", "--no-speculation")
    )
    assert with_["ids"] == without["ids"]
    assert without["usage"]["drafted_tokens"] == without["usage"]["accepted_tokens"] == 0
    assert set(with_["usage"]) == set(without["usage"])


def test_the_prompt_may_come_from_stdin(invoke) -> None:
    piped = invoke("chat", "--max-new-tokens", 6, "--json", input="the quick\n")
    given = invoke("chat", "the quick", "--max-new-tokens", 6, "--json")
    assert json.loads(piped.stdout)["prompt_ids"] == json.loads(given.stdout)["prompt_ids"]
    counted = json.loads(invoke("tokens", "--json", input="the quick\n").stdout)
    assert counted["total"] == len(json.loads(given.stdout)["prompt_ids"])


@pytest.mark.parametrize(
    ("data", "part"), [(b"caf\xe9", "not UTF-8"), (b"x" * 4_000_001, "too long")], ids=["latin-1", "endless"]
)
def test_bad_stdin_is_one_line(invoke, data: bytes, part: str) -> None:
    result = invoke("chat", input=data)
    assert (result.exit_code, result.stdout) == (1, "")
    assert part in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat"],
        ["chat", ""],
        ["chat", "  \n "],
        ["chat", "x", "--max-new-tokens", "0"],
        ["chat", "x", "--temperature", "nan"],
        ["chat", "x", "--temperature", "-1"],
        ["chat", "x", "--top-p", "0"],
        ["chat", "x", "--top-p", "1.5"],
        ["chat", "x", "--seed", "-1"],
        ["chat", "x", "--seed", "one"],
        ["chat", "x", "--threads", "0"],
        ["chat", "x", "--stop", ""],
        ["chat", "x", "y"],
        ["chat", "--image"],
        ["transcribe"],
        ["tokens", "--nonsense"],
        ["export"],
        ["export", "x"],
        ["eval", "x", "--against", "y", "--tokens", "1"],
        ["train"],
        ["nonsense"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert not arguments or (result.stderr.startswith("error: ") and result.stderr.count("\n") == 1)


def test_transcribe_one_and_several(invoke, examples: Path) -> None:
    clip = examples / "seven.flac"
    # Few tokens: with random weights the next one is often a near tie, and drafts depend on measured times.
    few = ("--max-new-tokens", 4)
    one = invoke("transcribe", clip, *few)
    several = invoke("transcribe", clip, clip, *few)
    assert one.exit_code == several.exit_code == 0
    assert one.stdout.count("\n") == 1
    assert several.stdout == f"{clip}: {one.stdout}" * 2
    value = json.loads(invoke("transcribe", clip, "--json", *few).stdout)
    (file,) = value["files"]
    assert list(file) == ["path", "text", "finish_reason", "segments"] and file["path"] == str(clip)
    assert " ".join(value["files"][0]["text"].split()) == one.stdout.strip()


def test_transcribe_goes_on_after_a_bad_file(invoke, examples: Path, bad_media: Path) -> None:
    clip, bad = examples / "seven.flac", bad_media / "silence.wav"
    result = invoke("transcribe", bad, clip)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{clip}: ") and result.stdout.count("\n") == 1
    assert result.stderr.startswith(f"error: {bad}") and "cut at 512 new tokens" in result.stderr
    value = json.loads(invoke("transcribe", bad, clip, "--json").stdout)
    assert set(value["files"][0]) == {"path", "error"} and "text" in value["files"][1]


def test_tokens_as_a_table(invoke, examples: Path) -> None:
    result = invoke("tokens", "--image", examples / "shapes.png", "what")
    assert result.exit_code == 0 and result.stderr == ""
    assert "shapes.png" in result.stdout and "total" in result.stdout and "vision" in result.stdout


@pytest.mark.parametrize(
    "command", ["chat", "transcribe", "tokens", "inspect", "verify", "devices", "export", "eval", "train"]
)
def test_help_names_every_option_and_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    before, _, after = result.stdout.partition("Options:")
    assert f"phirt {command}" in before.split("\n", 1)[1]
    found = get_command(app).commands[command]
    options = [name for param in found.params for name in param.opts if name.startswith("--")]
    assert options and [name for name in options if name not in after] == []


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout.startswith("phirt ")
