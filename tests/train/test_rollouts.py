"""Drawing and sorting answers: determinism, going on after a kill, rejection sampling, pairs, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import phirt
from phirt.errors import ConfigError
from phirt.generate.sampling import GenerationConfig
from phirt_apps.cli import app
from phirt_train.data.records import Conversation, PreferencePair, ToolCall, TrainingMessage, read_records
from phirt_train.rollouts.drawing import draw, seeds_of
from phirt_train.rollouts.questions import Question, read_questions
from phirt_train.rollouts.run import roll_out
from phirt_train.rollouts.sampler import BundleSampler, Request, Sample
from phirt_train.rollouts.selection import Judged, accepted, judge, preferences
from phirt_train.rollouts.verifiers import find_verifier

ROOT = Path(__file__).parents[2]
SUMS = [Question(f"What is {a} + {b}?", answer=str(a + b), level="sums") for a, b in ((2, 3), (4, 9), (1, 1))]
CONFIG = GenerationConfig(max_new_tokens=12, temperature=1.0)


class Scripted:
    """Gives written answers, and counts how often it was asked."""

    identity = "scripted"

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    def sample(self, request: Request, seeds: Sequence[int]) -> list[Sample]:
        text = request.messages[-1].content
        self.asked.append(text)
        return [Sample(answer.removesuffix("…"), answer.endswith("…")) for answer in self._answers[text]]


@pytest.fixture(scope="module")
def model(nano: Path) -> phirt.Model:
    return phirt.load(nano, threads=1)


def test_answers_are_a_function_of_the_seed(model: phirt.Model, tmp_path: Path) -> None:
    sampler = BundleSampler(model, CONFIG)
    first = draw(SUMS, sampler, tmp_path / "a", 5, seed=1)
    assert draw(SUMS, sampler, tmp_path / "b", 5, seed=1) == first
    # Neither other questions, nor their order, nor how many are worked on at once make a difference.
    assert draw(SUMS[::-1], sampler, tmp_path / "c", 5, seed=1, workers=2) == first[::-1]
    assert draw(
        SUMS[1:2], BundleSampler(phirt.load(model.manifest.folder, threads=1), CONFIG), tmp_path / "d", 5, 1
    )
    assert draw(SUMS, sampler, tmp_path / "e", 5, seed=2) != first
    assert len({sample.text for samples in first for sample in samples}) > 3


def test_equal_workers_write_the_same_bytes(model: phirt.Model, tmp_path: Path) -> None:
    sampler = BundleSampler(model, CONFIG)
    for workers in (1, 3):
        draw(SUMS, sampler, tmp_path / str(workers), 3, workers=workers)
    assert (tmp_path / "1/samples.jsonl").read_bytes() == (tmp_path / "3/samples.jsonl").read_bytes()


def test_the_prompt_is_run_once_for_all_answers(model: phirt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from phirt.generate.engine import Engine

    runs: list[int] = []
    whole = Engine._run_chunk

    def counted(self: Engine, ids: Sequence[int], *rest: object) -> None:
        runs.append(len(ids))
        whole(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_run_chunk", counted)
    request = Request(
        (TrainingMessage("user", "How many of them are there, and where do they all come from?"),)
    )
    BundleSampler(model, CONFIG).sample(request, [1, 2, 3, 4])
    assert runs[0] > 10 and runs[1:] == [1, 1, 1]


def test_seeds_differ_by_run_question_and_answer() -> None:
    seeds = [seeds_of(question, 4, seed) for question in SUMS for seed in (0, 1)]
    assert len({seed for of in seeds for seed in of}) == 4 * 2 * len(SUMS)
    assert seeds_of(SUMS[0], 8, 0)[:4] == seeds_of(SUMS[0], 4, 0)


def test_earlier_answers_of_a_conversation_are_asked_as_they_are_trained(model: phirt.Model) -> None:
    turns = (
        TrainingMessage("user", "Hi"),
        TrainingMessage("assistant", "Hello!"),
        TrainingMessage("user", "And?"),
    )
    tokenizer = model.generator.tokenizer
    sampler = BundleSampler(model, CONFIG)
    messages = [sampler._message(turn, Path()) for turn in turns]
    assert messages[1].token_ids == tuple(tokenizer.encode_content("Hello!"))
    call = TrainingMessage("assistant", tool_calls=(ToolCall("f", {"a": 1}),))
    written = sampler._message(call, Path()).token_ids
    assert written is not None and tokenizer.decode(list(written)).startswith("<|tool_call|>[{")


def test_what_is_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    answers = {question.asked[0].content: ["5", "6"] for question in SUMS}
    first = Scripted(answers)
    draw(SUMS[:1], first, tmp_path, 2)
    again = Scripted(answers)
    progress: list[tuple[int, int]] = []
    draw(SUMS, again, tmp_path, 2, on_progress=lambda done, total: progress.append((done, total)))
    assert again.asked == [question.asked[0].content for question in SUMS[1:]]
    assert progress == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_kill_has_cut_is_drawn_again(tmp_path: Path, cut: int) -> None:
    answers = {question.asked[0].content: ["5", "6"] for question in SUMS}
    draw(SUMS, Scripted(answers), tmp_path, 2)
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Scripted(answers)
    draw(SUMS, again, tmp_path, 2)
    assert path.read_bytes() == whole
    assert again.asked == [SUMS[2].asked[0].content]


def test_a_cut_first_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_bytes(b'{"sampler": "scr')
    answers = {SUMS[0].asked[0].content: ["5"]}
    draw(SUMS[:1], Scripted(answers), tmp_path, 1)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("content", ["[]\n", "{}\n", "no JSON\n"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "samples.jsonl").write_text(content)
    with pytest.raises(ConfigError, match="samples"):
        draw(SUMS[:1], Scripted({}), tmp_path, 1)
    assert (tmp_path / "samples.jsonl").read_text() == content


def test_another_run_is_refused(tmp_path: Path) -> None:
    answers = {SUMS[0].asked[0].content: ["5"]}
    draw(SUMS[:1], Scripted(answers), tmp_path, 1)
    with pytest.raises(ConfigError, match="answers of another model, or with other settings; give another"):
        draw(SUMS[:1], Scripted(answers), tmp_path, 1, seed=7)


PATHS = [
    "2 + 3 = 5\n#### 5",  # right
    "2 + 3 = 5, so it is\n#### 5",  # the same way of working
    "3 + 2 = 5\n#### 5",  # another way
    "2 + 3 = 6\n#### 5",  # right by accident
    "2 + 3 = 5\n#### 6",  # wrong
    "2 + 3 = 5\n#### 5 and on and on…",  # cut behind its answer
    "2 + …",  # cut before
    "",
]
GOLD = "We add: <<2+3=5>>5\n#### 5"


def _judged(paths: Sequence[str] = PATHS) -> Judged:
    samples = [Sample(path.removesuffix("…"), path.endswith("…")) for path in paths]
    return judge(Question("What is 2 + 3?", answer=GOLD), samples, find_verifier("number"))


def test_verdicts() -> None:
    judged = _judged()
    assert judged.verdicts == (
        "right", "right", "right", "wrong equation", "wrong answer", "cut", "cut", "wrong answer",
    )  # fmt: skip
    assert judged.share == 3 / 8


def test_each_way_of_working_is_kept_once_beside_the_gold_path() -> None:
    # "2+3=5" is the gold path's own way of working, so of the drawn ones only the other way is new.
    assert _judged().right == (GOLD, PATHS[2])
    (first, second) = accepted(_judged())
    assert first.messages[-1] == TrainingMessage("assistant", GOLD)
    assert second.messages[-1].content == PATHS[2]


def test_pairs_prefer_right_answers_to_wrong_ones_that_ended() -> None:
    pairs = list(preferences(_judged(), 4))
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(GOLD, PATHS[3]), (PATHS[2], PATHS[4])]
    assert list(preferences(_judged(), 1)) == pairs[:1]


def test_right_calls_become_calls() -> None:
    call = ToolCall("play", {"song": "Blue"})
    question = Question("Play Blue", calls=(call,))
    written = '<|tool_call|>[{"name": "play", "arguments": {"song": "Blue"}}]<|/tool_call|>'
    samples = [Sample(written), Sample(f"I play it. {written}"), Sample("No.")]
    judged = judge(question, samples, find_verifier("tools"))
    assert judged.verdicts == ("right", "right", "wrong answer")
    turns = [chat.messages[-1] for chat in accepted(judged)]
    assert turns == [
        TrainingMessage("assistant", tool_calls=(call,)),
        TrainingMessage("assistant", "I play it.", tool_calls=(call,)),
    ]


def test_only_questions_in_the_band_are_kept(tmp_path: Path) -> None:
    answers = {
        SUMS[0].asked[0].content: ["5", "6", "6", "6"],
        SUMS[1].asked[0].content: ["13"] * 4,
        SUMS[2].asked[0].content: ["3"] * 4,
    }
    levels = roll_out(SUMS, Scripted(answers), find_verifier("number"), tmp_path, count=4, with_pairs=True)
    assert list(levels) == ["sums", "all"]
    one = levels["sums"]
    assert (one.questions, one.samples, one.p) == (3, 12, pytest.approx(5 / 12))
    assert (one.easier, one.in_band, one.harder, one.accepted, one.pairs) == (1, 1, 1, 1, 1)
    assert one.tenths == (1, 0, 1, 0, 0, 0, 0, 0, 0, 1)
    chats = [chat for _, chat in read_records(tmp_path / "accepted.jsonl", Conversation)]
    assert [chat.messages[-1].content for chat in chats] == ["5"]
    pairs = [pair for _, pair in read_records(tmp_path / "pairs.jsonl", PreferencePair)]
    assert pairs == [PreferencePair(SUMS[0].asked, "5", "6")]
    (rejected,) = map(json.loads, (tmp_path / "rejected.jsonl").read_text().splitlines())
    assert (rejected["answer"], rejected["reason"], rejected["level"]) == ("6", "wrong answer", "sums")
    assert json.loads((tmp_path / "report.json").read_text())["levels"]["all"]["in_band"] == 1


def test_a_question_without_what_is_needed_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    sampler = Scripted({})
    with pytest.raises(ConfigError, match="no 'calls'"):
        roll_out(SUMS, sampler, find_verifier("tools"), tmp_path, count=1)
    assert sampler.asked == [] and not (tmp_path / "samples.jsonl").exists()


def test_questions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"question": f"q{n % 10}", "answer": str(n % 10)} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [one.question for one in read_questions(path)] == [f"q{n}" for n in range(10)]
    assert [one.question for one in read_questions(path, 5)] == ["q0", "q2", "q4", "q6", "q8"]
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no question"):
        read_questions(path)
    path.write_text('{"question": "a", "prompt": [{"role": "user"}]}\n')
    with pytest.raises(ConfigError, match="line 1: give either 'question' or 'prompt'"):
        read_questions(path)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(5) for b in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_writes_what_training_reads(questions: Path, tmp_path: Path, nano: Path) -> None:
    words = ["rollout", "-m", str(nano), str(questions), "-o", str(tmp_path / "out"), "--samples", "3"]
    more = [
        "--limit",
        "4",
        "--max-new-tokens",
        "8",
        "--least",
        "0",
        "--most",
        "1",
        "--pairs",
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(app, [*words, *more])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:3] == ["level", "questions", "answers"]
    assert done.stdout.splitlines()[-1].split()[:3] == ["all", "4", "12"]
    assert len(list(read_records(tmp_path / "out/accepted.jsonl", Conversation))) >= 4
    again = CliRunner().invoke(app, [*words, *more, "--json"])
    assert json.loads(again.stdout)["levels"]["all"]["samples"] == 12


@pytest.mark.parametrize(
    ("more", "words", "status"),
    [
        (["--verify", "vibes"], "there is no verifier 'vibes'", 2),
        (["--least", "0.9"], "the band is 0.9 to 0.8", 2),
        (["--verify", "tools"], "no 'calls'", 1),
        (["--temperature", "-1"], "temperature", 2),
    ],
)
def test_mistakes_end_in_one_line(
    questions: Path, tmp_path: Path, nano: Path, more: list[str], words: str, status: int
) -> None:
    base = ["rollout", "-m", str(nano), str(questions), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*base, *more])
    assert done.exit_code == status and words in done.stderr and len(done.stderr.splitlines()) == 1


def _wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended before it could be killed"


def test_a_killed_command_goes_on(questions: Path, tmp_path: Path, nano: Path, model: phirt.Model) -> None:
    command = [sys.executable, "-m", "phirt", "rollout", "-m", str(nano), str(questions), "--samples", "4"]
    command += ["--threads", "1", "--max-new-tokens", "12", "-o"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=ROOT, stdout=subprocess.DEVNULL)
    _wait_for_lines(tmp_path / "killed/samples.jsonl", 5, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = (tmp_path / "killed/samples.jsonl").read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    subprocess.run([*command, str(tmp_path / "killed")], cwd=ROOT, check=True, capture_output=True)
    sampler = BundleSampler(model, GenerationConfig(max_new_tokens=12, temperature=0.7))
    draw(read_questions(questions), sampler, tmp_path / "whole", 4)
    whole = (tmp_path / "whole/samples.jsonl").read_bytes()
    assert (tmp_path / "killed/samples.jsonl").read_bytes() == whole
    assert whole.startswith(kept) and len(kept) < len(whole)


def test_pictures_are_found_beside_the_questions(model: phirt.Model) -> None:
    turn = TrainingMessage("user", "What is this?", images=("shoes.jpg",))
    request = Request((turn,), folder=ROOT / "apps/examples")
    first, second = BundleSampler(model, CONFIG).sample(request, [3, 3])
    assert first.text and first == second
