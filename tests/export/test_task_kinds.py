"""What tasks ask and how it is counted, by hand: models here are rules, and no bundle is opened."""

from __future__ import annotations

import io
import itertools
import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt.errors import ConfigError
from phirt_quant.evaluation import likeliest
from phirt_quant.examiner import Examiner, TextForm
from phirt_quant.likelihood import rolling_likelihood, rolling_windows
from phirt_quant.media_files import read_media
from phirt_quant.metrics import Answer, Choices, Passage, Transcript, estimate
from phirt_quant.task_scores import read_examination, run
from phirt_quant.tasks import read_task
from phirt_quant.tasks.task import Document, Exercise, Question, Recording
from phirt_quant.word_errors import spoken_words

SIZE = 128  # ids are ASCII characters


class Bigrams:
    """A model that knows how often each character follows another one in a text, and forgets all before."""

    def __init__(self, text: str) -> None:
        counts = np.full((SIZE, SIZE), 0.01)
        for before, after in itertools.pairwise(text):
            counts[ord(before), ord(after)] += 1
        self.table = np.log(counts / counts.sum(-1, keepdims=True)).astype(np.float32)
        self.lengths: list[int] = []

    def score(self, ids: Sequence[int], first: int) -> Iterator[np.ndarray]:
        self.lengths.append(len(ids) - 1)
        yield from (self.table[ids[place - 1]] for place in range(first, len(ids)))

    def answer(self, ids: Sequence[int], draft: Sequence[int] = ()) -> Iterator[int]:
        last = ids[-1]
        while True:
            last = int(self.table[last].argmax())
            yield last

    def nats(self, text: str) -> float:
        return float(sum(self.table[ord(a), ord(b)] for a, b in itertools.pairwise(text)))


FORM = TextForm(
    encode=lambda text: [ord(c) for c in text],
    decode=lambda ids: "".join(map(chr, ids)),
    begin=(),
    bos=0,
    context=64,
)


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@given(count=st.integers(0, 60), longest=st.integers(1, 12))
def test_windows_predict_each_token_once_and_are_full(count, longest):
    windows = rolling_windows(count, longest)
    predicted = [place for _, first, end in windows for place in range(first, end)]
    assert predicted == list(range(1, count + 1))
    assert all(start < first and end - 1 - start == min(longest, count) for start, first, end in windows)


def test_windows_by_hand():
    # Four positions see ten tokens: 0-3 predict 1-4, 4-7 predict 5-8, and 6-9, of which two are new.
    assert rolling_windows(10, 4) == [(0, 1, 5), (4, 5, 9), (6, 9, 11)]


def test_a_whole_text_is_scored_from_its_first_token():
    text = "the sea and the ship and the sand " * 5
    model = Bigrams(text)
    expected = float(model.table[0, ord("t")]) + model.nats(text)
    assert rolling_likelihood(model, 0, [ord(c) for c in text], 64) == pytest.approx(expected, rel=1e-5)
    passage = Examiner(FORM).roll(model, Document(text))
    assert passage == Passage(pytest.approx(expected, rel=1e-5), words=41, bytes=len(text))
    assert set(model.lengths) == {64}


def test_measures_of_documents_and_recordings_by_hand():
    passages = [Passage(-30.0, 5, 20), Passage(-50.0, 11, 30)]
    assert estimate("bits_per_byte", passages).value == pytest.approx(80 / 50 / math.log(2))
    assert estimate("byte_perplexity", passages).value == pytest.approx(math.exp(80 / 50))
    assert estimate("word_perplexity", passages).value == pytest.approx(math.exp(80 / 16))
    heard = [Transcript("a", 1, 4), Transcript("b", 3, 4), Transcript("c", 0, 2)]
    assert estimate("wer", heard).value == pytest.approx(0.4)


def test_likelihood_without_the_context_is_taken_off():
    choices = Choices((-3.0, -4.0), (False, False), (1, 1), (1, 1), 1, alone=(-2.0, -9.0))
    assert estimate("acc", [choices]).value == 0.0
    assert estimate("acc_mutual_info", [choices]).value == 1.0
    text = "is the sea blue? no is it? yes yes yes"
    model, question = Bigrams(text), Question("is it?", (" no", " yes"), 1)
    found = Examiner(FORM, needs_alone=True).ask(model, question)
    start = [float(model.table[0, ord(" ")])] * 2
    alone = [nats + model.nats(c) for nats, c in zip(start, question.continuations, strict=True)]
    assert found.alone == pytest.approx(alone, rel=1e-5)
    assert found.nats == pytest.approx([model.nats("? no"), model.nats("? yes")], rel=1e-5)
    assert Examiner(FORM).ask(model, question).alone == ()


def test_bytes_are_no_characters():
    choices = Choices((-3.0, -4.0), (False, False), (2, 3), (6, 3), 0)  # two characters of three bytes
    assert estimate("acc_norm", [choices]).value == 0.0  # -1.5 and -1.33
    assert estimate("acc_bytes", [choices]).value == 1.0  # -0.5 and -1.33


GSM8K = {"question": "How many?", "answer": "2*600 = <<2*600=1200>>1,200 keys.\n#### 1,200"}


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        (" 1200 keys.\n#### 1,200", True, True),
        (" It is #### $1200", False, True),
        (" The answer is $1,200.", False, True),
        ("\n#### 1200\nIn 3 days 7", True, False),
        ("\n#### 120", False, False),
        (" #### -1200", False, False),
        (" none", False, False),
    ],
)
def test_worked_answers_are_read_strictly_and_loosely(text, strict, loose):
    (exercise,) = read_task("gsm8k").items(GSM8K)
    assert exercise.is_right(text) is strict and exercise.is_right_loosely(text) is loose
    assert exercise.target == f" {GSM8K['answer']}" and exercise.stops == ("Question:",)


TRIVIA = {
    "question": "Who wrote The Old Man & the Sea?",
    "question_id": "tc_0",
    "answer": {
        "aliases": ["Ernest Hemingway", "Papa (Hemingway)", "E. Hemingway"],
        "normalized_aliases": ["ernest hemingway", "papa hemingway", "e hemingway", "hemingway"],
        "value": "Ernest Hemingway",
        "normalized_value": "ernest hemingway",
    },
}


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        (" Ernest Hemingway", True, True),
        (" ernest hemingway!", True, True),
        ("Papa Hemingway", True, True),
        (" the e-Hemingway", False, True),
        (" Hemingway", False, True),  # of the normalised names alone
        (" Ernest  Hemingway", False, True),
        (" Ernest", False, False),
        ("", False, False),
    ],
)
def test_one_of_many_names_is_the_answer(tmp_path, text, strict, loose):
    write(tmp_path / "eval/triviaqa.jsonl", [TRIVIA])
    (exercise,) = read_examination("triviaqa", tmp_path).items
    assert exercise.context == "Question: Who wrote The Old Man & the Sea??\nAnswer:"  # as the harness has it
    assert exercise.target == " Ernest Hemingway" and exercise.stops == ("\n", ".", ",")
    assert exercise.is_right(text) is strict and exercise.is_right_loosely(text) is loose


def test_a_lead_is_asked_for_by_what_follows_it(tmp_path):
    body = "It has three streams. " * 9
    page = {"title": "Valley", "text": f"The valley is green. It is old.\n\n{body}\n\n{'x' * 1400}"}
    short = {"title": "Hill", "text": "A hill is high.\n\nIt is."}
    write(tmp_path / "text/wikipedia.val.jsonl", [page, short])
    examination = read_examination("wikipedia_lead", tmp_path)
    (exercise,) = examination.items
    assert exercise.context == f"Valley\n\n{body}\n\nTL;DR:" and exercise.target == " The valley is green."
    answer = Answer("The valley is old.", False, wanted="The valley is green.")
    assert estimate("rouge_l", [answer]).value == pytest.approx(3 / 4) and examination.shots == 0


def test_questions_of_the_published_layouts():
    passage = {"passage": "Sea is salty.", "question": "is sea salty", "answer": True, "title": "Sea"}
    (boolq,) = read_task("boolq").items(passage)
    assert boolq == Question("Sea is salty.\nQuestion: is sea salty?\nAnswer:", (" no", " yes"), 1)
    ends = ["goes on.", "[substeps] stops  now."]
    scene = {"activity_label": "Sailing", "ctx_a": "A man sails.", "ctx_b": "he", "endings": ends}
    (swag,) = read_task("hellaswag").items({**scene, "label": 1})
    assert swag == Question(
        "Sailing: A man sails. He", (" goes on.", "  stops now."), 1
    )  # spaces as the harness has them
    exam = {"question": "1+1? ", "subject": "high_school_maths", "choices": list("2345"), "answer": 0}
    (mmlu,) = read_task("mmlu").items(exam)
    assert mmlu.context == "1+1?\nA. 2\nB. 3\nC. 4\nD. 5\nAnswer:" and mmlu.gold == 0
    assert mmlu.continuations == (" A", " B", " C", " D") and "about high school maths." in mmlu.preface
    assert read_task("mmlu").items({**exam, "answer": "C"})[0].gold == 2


def exam_of(number: int) -> dict:
    return {"question": f"{number}?", "subject": "sea", "choices": list("wxyz"), "answer": number % 4}


def test_examples_come_from_the_training_file_and_are_never_the_item(tmp_path):
    write(tmp_path / "eval/mmlu.jsonl", [exam_of(n) for n in range(4)])
    write(tmp_path / "eval/mmlu.dev.jsonl", [exam_of(n) for n in [*range(2, 9), 8, 8]])  # 2 and 3 leaked
    drawn = read_examination("mmlu", tmp_path, shots=5)
    for number, item in enumerate(drawn.items):
        preface, *examples = item.context.split("\n\n")
        assert preface.endswith("about sea.") and examples.pop().startswith(f"{number}?\n")
        asked = [int(example.split("?")[0]) for example in examples]
        assert len(set(asked)) == 5 and number not in asked and set(asked) <= set(range(2, 9))
        assert all(e.endswith(f"Answer: {'ABCD'[n % 4]}") for e, n in zip(examples, asked, strict=True))
    assert read_examination("mmlu", tmp_path, shots=5).items == drawn.items
    assert read_examination("mmlu", tmp_path, shots=5, seed=1).items != drawn.items
    with pytest.raises(ConfigError, match="7 examples were asked for, and the task mmlu has 6"):
        read_examination("mmlu", tmp_path, shots=7)
    (tmp_path / "eval/mmlu.dev.jsonl").unlink()  # then they are the task's own other records
    alone = read_examination("mmlu", tmp_path, shots=3)
    for number, item in enumerate(alone.items):
        others = [int(example.split("?")[0]) for example in item.context.split("\n\n")[1:-1]]
        assert sorted(others) == [n for n in range(4) if n != number]


@given(seed=st.integers(0, 2**32), shots=st.integers(1, 4))
def test_no_draw_holds_the_item(tmp_path_factory, seed, shots):
    folder = tmp_path_factory.mktemp("draw")
    write(folder / "eval/svamp.jsonl", [{"context": f"{n} keys?", "answer": "1"} for n in (1, 2, 2, 3, 4, 5)])
    for item in read_examination("svamp", folder, shots=shots, seed=seed).items:
        *examples, asked = item.context.split("\n\n")
        assert not any(example.startswith(asked) for example in examples) and len(set(examples)) == shots


def test_other_measures_are_taken_where_they_suit(tmp_path):
    write(tmp_path / "eval/mmlu.jsonl", [exam_of(n) for n in range(3)])
    examination = read_examination("mmlu", tmp_path, metrics=["acc_mutual_info", "acc", "acc_bytes"])
    assert examination.metrics == ("acc", "acc_mutual_info", "acc_bytes")
    ((first, *_),) = run(examination, FORM, [Bigrams("A. w Answer: A")])
    assert isinstance(first, Choices) and len(first.alone) == 4
    with pytest.raises(ConfigError, match="mmlu has no measure 'wer'; choose from acc, acc_bytes"):
        read_examination("mmlu", tmp_path, metrics=["wer"])


def test_an_answer_ends_at_the_first_stop():
    exercise = Exercise("ab", " c", lambda text: text == "cdab", stops=("d.", "."), max_new_tokens=9)
    model = Bigrams("abcdabcd")
    answer, ids = Examiner(FORM).set(model, exercise, [])
    assert answer.text == "cdabcdabc" and len(ids) == 9 and not answer.is_right
    stopped, ids = Examiner(FORM).set(model, Exercise("ab", "", lambda t: t == "cdab", stops=("cda",)), [])
    assert stopped.text == "" and len(ids) == 3
    cut, _ = Examiner(FORM).set(model, Exercise("ab", "", lambda t: t == "cd", stops=("ab", "bc")), [])
    assert cut.text == "cd" and cut.is_right and cut.is_right_loosely


def test_what_is_heard_is_compared_without_case_and_punctuation():
    assert spoken_words("It's  Ten o’clock, isn't_it?") == "its ten oclock isnt it"
    with pytest.raises(ConfigError, match="recordings are put to bundles"):
        Examiner(FORM).play(Bigrams("ab"), Recording("a.ogg", "a"))


def test_media_are_read_from_a_tar_or_beside_the_records(tmp_path):
    records, tar_path = tmp_path / "clips.val.jsonl.xz", tmp_path / "clips.val.tar"
    (tmp_path / "a.ogg").write_bytes(b"beside")
    assert read_media(records, ["a.ogg"]) == {"a.ogg": b"beside"}
    for name in ("b.ogg", "../a.ogg", "/etc/passwd"):
        with pytest.raises(ConfigError, match="no file beside it"):
            read_media(records, [name])
    with tarfile.open(tar_path, "w") as tar:
        member = tarfile.TarInfo("a.ogg")
        member.size = 6
        tar.addfile(member, io.BytesIO(b"packed"))
    assert read_media(records, ["a.ogg"]) == {"a.ogg": b"packed"}
    with pytest.raises(ConfigError, match=r"clips.val.tar holds no 'b.ogg'"):
        read_media(records, ["b.ogg"])
    tar_path.write_bytes(b"no tar")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_media(records, ["a.ogg"])


def test_no_answer_holds_a_placeholder():
    logits = np.array([0.0, 3.0, 1.0, 2.0], np.float32)
    assert likeliest(logits, (1,)) == 3 and likeliest(logits, (1, 3)) == 2 and likeliest(logits, ()) == 1
    assert logits.tolist() == [0.0, 3.0, 1.0, 2.0]
