"""The interactive session: in this process with scripted lines, and on a real pseudo-terminal."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import phirt
from phirt_apps.conversation import open_chat
from phirt_apps.interactive.session import Session, Setup
from phirt_apps.output import Output


@pytest.fixture(scope="module")
def model(bundle: Path) -> phirt.Model:
    """The small bundle, loaded once."""
    return phirt.load(bundle)


class Script:
    """Lines from a list; an exception in it is raised, as Ctrl-C is at a prompt."""

    def __init__(self, lines: Iterable[str | BaseException]) -> None:
        self._lines = iter(lines)
        self.prompts: list[str] = []

    def read(self, prompt: str) -> str:
        """The next line; the end of the list is the end of input."""
        self.prompts.append(prompt)
        try:
            line = next(self._lines)
        except StopIteration:
            raise EOFError from None
        if isinstance(line, BaseException):
            raise line
        return line

    def poll(self) -> None:
        """Nobody types here while an answer comes."""

    def hold(self) -> None:
        """So nothing has to be held either."""


class Played:
    """What a session wrote and asked."""

    def __init__(self, model: phirt.Model, lines: Iterable[str | BaseException], **setup: object) -> None:
        stdout, stderr, script = io.StringIO(), io.StringIO(), Script(lines)
        settings = {"settings": {"max_new_tokens": 6}, **setup}
        chat = open_chat(model, settings.get("kept_in"), system=None, tools=None)
        Session(model, chat, Setup(**settings), Output(stdout, stderr)).run(script)
        self.stdout, self.stderr, self.prompts = stdout.getvalue(), stderr.getvalue(), script.prompts

    @property
    def errors(self) -> list[str]:
        """The lines that begin with `error:`."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture
def play(model: phirt.Model) -> Callable[..., Played]:
    """Runs a session on these lines."""
    return lambda *lines, **setup: Played(model, lines, **setup)


def test_text_then_image_then_audio_then_text(
    play, model: phirt.Model, examples: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.phirt"
    played = play(
        "the quick",
        f"/image {examples / 'shapes.png'}",
        "what is this",
        f"/audio {examples / 'seven.flac'}",
        "and this",
        "then",
        f"/save {saved}",
    )
    assert played.errors == []
    assert played.stdout.count("\n") == 4
    assert played.prompts == ["> ", "> ", "[shapes.png] > ", "> ", "[seven.flac] > ", "> ", "> ", "> "]
    chat = model.load_chat(saved)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 4
    assert [len(message.media) for message in chat.messages[::2]] == [0, 1, 1, 0]
    assert chat.adapter == "vision"


def test_several_attachments_for_one_message(
    play, model: phirt.Model, examples: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.phirt"
    picture, clip = examples / "shapes.png", examples / "seven.flac"
    played = play(f"/image {picture}", f"/audio {clip}", f"/image {picture}", "what", f"/save {saved}")
    assert played.errors == []
    assert played.prompts[3] == "[shapes.png, shapes.png, seven.flac] > "
    assert [media.modality for media in model.load_chat(saved).messages[0].media] == [
        "image",
        "image",
        "audio",
    ]


def test_an_attachment_alone_is_a_message(play, examples: Path) -> None:
    played = play(f"/image {examples / 'shapes.png'}", "")
    assert played.errors == [] and played.stdout.strip()


def test_detach_forgets_attachments(play, examples: Path) -> None:
    played = play(f"/image {examples / 'shapes.png'}", "/detach", "")
    assert played.prompts == ["> ", "[shapes.png] > ", "> ", "> "] and played.stdout == ""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/image missing.jpg", "does not exist"),
        ("/image truncated.jpg", "damaged or incomplete"),
        ("/image text.jpg", "no picture"),
        ("/audio silence.wav", "silent"),
        ("/audio long.wav", "longer than 60 seconds"),
        ("/image", "needs a file name"),
        ("/reset now", "takes nothing"),
        ("/picture x", "unknown command /picture; the commands are /image /audio"),
        ("/", "unknown command /"),
        ("/load missing.phirt", "missing.phirt"),
        ("/load text.jpg", "damaged or no saved conversation"),
        ("/save text.jpg", "no saved conversation; choose another name"),
        ("/save folder.jpg", "no saved conversation; choose another name"),
        ("/save no/such/folder/x", "cannot be saved"),
        ("/save /dev/null", "no saved conversation; choose another name"),
        ("caf\udce9", "UTF-8"),
        ("x " * 40_000, "context"),
    ],
)
def test_an_error_costs_one_line_and_nothing_else(
    play,
    model: phirt.Model,
    examples: Path,
    bad_media: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    reason: str,
) -> None:
    monkeypatch.chdir(bad_media)
    before = {entry.name: entry.stat().st_mtime_ns for entry in bad_media.iterdir()}
    saved = tmp_path / "talk.phirt"
    played = play("the quick", f"/image {examples / 'shapes.png'}", line, "what is this", f"/save {saved}")
    assert len(played.errors) == 1 and reason in played.errors[0]
    assert played.prompts[3] == "[shapes.png] > "  # the attachment is still there
    messages = model.load_chat(saved).messages
    assert [message.content for message in messages[::2]] == ["the quick", "what is this"]
    assert len(messages[2].media) == 1
    assert {entry.name: entry.stat().st_mtime_ns for entry in bad_media.iterdir()} == before


def test_reset_begins_again(play, model: phirt.Model, tmp_path: Path) -> None:
    saved = tmp_path / "talk.phirt"
    played = play("the quick", "/reset", "/stats", f"/save {saved}")
    assert played.errors == [] and "no answer yet" in played.stderr
    assert model.load_chat(saved).messages == ()


def test_save_and_load_go_on_where_it_was(play, model: phirt.Model, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "with spaces in it"
    straight = play("the quick", "brown", "fox")
    play("the quick", "brown", f"/save {first}")
    resumed = play(f"/load {first}", "fox", "/stats", f"/save {second}")
    assert resumed.stdout == straight.stdout.splitlines(keepends=True)[2]
    assert "4 messages from" in resumed.stderr
    assert not re.search(r"; 0 cached", resumed.stderr)
    assert len(model.load_chat(second).messages) == 6


def test_stats_show_figures_of_the_last_answer(play) -> None:
    asked = play("the quick", "/stats")
    always = play("the quick", stats=True)
    for played in (asked, always):
        assert (
            "first token" in played.stderr
            and "decode" in played.stderr
            and "first token" not in played.stdout
        )


def test_ctrl_c_at_the_prompt_hints_and_goes_on(play) -> None:
    played = play(KeyboardInterrupt(), "the quick")
    assert played.stderr.count("Ctrl-D or /quit leaves.") == 2 and played.stdout.strip()


def test_help_lists_every_command(play) -> None:
    played = play("/help")
    for name in ("/image F", "/audio F", "/reset", "/save F", "/load F", "/stats", "/help", "/quit"):
        assert name in played.stderr
    assert played.stdout == ""


def test_quit_ends_at_once_and_a_space_makes_a_slash_text(play) -> None:
    assert play("/quit", "the quick").stdout == ""
    assert play(" /not a command").stdout.strip()


def saved_messages(model: phirt.Model, path: Path) -> list[tuple[str, list[str]]]:
    """The text and the modalities of each question of a saved conversation."""
    messages = model.load_chat(path).messages[::2]
    return [(message.content, [media.modality for media in message.media]) for message in messages]


def test_files_in_a_message_are_attached(play, model: phirt.Model, examples: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.phirt"
    clip = tmp_path / "my clip.bin"  # what it is shows in its bytes
    clip.write_bytes((examples / "seven.flac").read_bytes())
    picture = examples / "shapes.png"
    played = play(
        f"what is in '{picture}'?",
        f"'{clip}' file://{picture}",
        "and these",
        f"the same again {picture} {picture}",
        f'"""{picture}"""',
        "http://example.org/shapes.png",
        f"{tmp_path}/no.png is missing",
        f"/save {saved}",
    )
    assert played.errors == []
    assert played.stderr.count("shapes.png: ") == 3 and "my clip.bin: " in played.stderr
    assert played.prompts[2] == "[shapes.png, my clip.bin] > "
    assert saved_messages(model, saved) == [
        ("what is in?", ["image"]),
        ("and these", ["image", "audio"]),
        ("the same again", ["image"]),
        (str(picture), []),
        ("http://example.org/shapes.png", []),
        (f"{tmp_path}/no.png is missing", []),
    ]


def test_a_dropped_file_that_cannot_be_used_costs_one_line(
    play, model: phirt.Model, examples: Path, bad_media: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.phirt"
    played = play(
        f"/image {examples / 'shapes.png'}",
        f"compare {examples / 'seven.flac'} {bad_media / 'truncated.jpg'}",
        f"{bad_media / 'text.jpg'}",
        "what",
        f"/save {saved}",
    )
    assert ["truncated.jpg" in played.errors[0], "neither a picture nor a recording" in played.errors[1]] == [
        True,
        True,
    ]
    assert len(played.errors) == 2 and played.prompts[1:4] == ["[shapes.png] > "] * 3
    assert saved_messages(model, saved) == [("what", ["image"])]


def test_a_message_may_begin_with_a_slash(play, model: phirt.Model, tmp_path: Path) -> None:
    saved = tmp_path / "talk.phirt"
    played = play("/etc/hosts is what?", "/ is the root", "//help", '"""/quit"""', "/hlep", f"/save {saved}")
    assert played.errors == [
        "error: unknown command /hlep; did you mean /help? //hlep would send it as a message"
    ]
    asked = [text for text, _ in saved_messages(model, saved)]
    assert asked == ["/etc/hosts is what?", "/ is the root", "/help", "/quit"]


def test_other_names_of_commands(play, model: phirt.Model, tmp_path: Path) -> None:
    saved = tmp_path / "talk.phirt"
    assert "/save F" in play("?").stderr and "/save F" in play("/?").stderr
    assert play("/exit", "hi").stdout == play("/bye", "hi").stdout == ""
    assert "a new conversation" in play("hi", "/clear", f"/save {saved}").stderr
    assert model.load_chat(saved).messages == ()


def test_on_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(
    bundle: Path, tmp_path: Path, terminal
) -> None:
    screen = terminal("chat", "-m", bundle, "--max-new-tokens", "30000")
    saved = tmp_path / "talk.phirt"
    screen.wait("Ctrl-D or /quit leaves")
    screen.type("the quick\n")
    screen.wait(r"[ -~]{200}")
    screen.type("\x03")
    screen.wait("stopped; the answer so far stays")
    screen.type(f"/save {saved}\n")
    screen.wait("saved to")
    screen.wait_line("> ")
    screen.type("\x03")
    screen.wait("Ctrl-D or /quit leaves")
    screen.type("and then\n")
    screen.wait(r"[ -~]{200}")
    screen.type("\x03")
    screen.wait("stopped; the answer so far stays")
    screen.wait_line("> ")
    screen.type("\x04")
    assert screen.finish() == 0
    asked, answer = phirt.load(bundle).load_chat(saved).messages
    assert asked.content == "the quick" and len(answer.content) >= 20
    assert answer.token_ids is not None and len(answer.token_ids) < 30000
    # Ctrl-C makes the terminal throw away what it has not shown yet: the end may be missing there.
    assert answer.content[:150] in screen.seen.replace("\r\n", "\n")


def test_on_a_terminal_a_missing_image_and_a_good_one(
    bundle: Path, tmp_path: Path, examples: Path, terminal
) -> None:
    picture = tmp_path / "my photo.png"
    picture.write_bytes((examples / "shapes.png").read_bytes())
    screen = terminal("chat", "-m", bundle, "--max-new-tokens", "5", "--stats", HOME=str(tmp_path))
    screen.wait("Ctrl-D or /quit leaves")
    screen.type("/image nowhere.png\n")
    screen.wait("error: .*nowhere.png does not exist")
    screen.type("/image ~/my photo.png\n")
    screen.wait(r"my photo.png: \d+ tokens")
    screen.type("what is this\n")
    assert "route vision" in screen.wait("peak memory")
    screen.type("/ima\t~/my\t\n")
    screen.wait(r"my photo.png: \d+ tokens")
    screen.type("/quit\n")
    assert screen.finish() == 0
    assert "Traceback" not in screen.seen


def test_media_on_the_command_line_belong_to_the_first_message(
    bundle: Path, examples: Path, terminal
) -> None:
    screen = terminal("chat", "-m", bundle, "--max-new-tokens", "5", "--image", examples / "shapes.png")
    screen.wait_line(r"\[shapes.png\] > ")
    screen.type("what\n")
    screen.wait("cut at 5 new tokens")
    screen.type("/stats\n")
    assert "route vision" in screen.wait("peak memory")
    screen.wait_line("> ")
    screen.type("\x04")
    assert screen.finish() == 0


def test_a_bad_image_on_the_command_line_ends_it(bundle: Path, bad_media: Path, terminal) -> None:
    screen = terminal("chat", "-m", bundle, "--image", bad_media / "pixel.png")
    assert screen.finish() == 1
    assert "error: " in screen.seen and "1 x 1" in screen.seen and "> " not in screen.seen


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
def test_json_needs_a_prompt(bundle: Path, terminal) -> None:
    screen = terminal("chat", "-m", bundle, "--json")
    assert screen.finish() == 2
    assert "--json needs a PROMPT" in screen.seen


def test_answers_may_go_to_a_file_while_a_person_types(bundle: Path, tmp_path: Path, terminal) -> None:
    answers = tmp_path / "answers.txt"
    wrapper = ("sh", "-c", f'exec "$@" > "{answers}"', "sh")
    screen = terminal("chat", "-m", bundle, "--max-new-tokens", "5", wrapper=wrapper)
    screen.wait_line("> ")
    screen.type("the quick\n")
    screen.wait("cut at 5 new tokens")
    screen.wait_line("> ")
    screen.type("/quit\n")
    assert screen.finish() == 0
    written = answers.read_text()
    assert written.count("\n") == 1 and "> " not in written and "\x1b" not in written
    assert written.strip() not in screen.seen


def test_pasted_lines_are_one_message(bundle: Path, tmp_path: Path, terminal) -> None:
    saved = tmp_path / "talk.phirt"
    screen = terminal("chat", "-m", bundle, "--max-new-tokens", "5")
    screen.wait_line("> ")
    screen.type("\x1b[200~first line\nsecond line\x1b[201~\n")
    screen.wait("cut at 5 new tokens")
    screen.wait_line("> ")
    screen.type(f"/save {saved}\n")
    screen.wait("saved to")
    screen.type("/quit\n")
    assert screen.finish() == 0
    assert phirt.load(bundle).load_chat(saved).messages[0].content == "first line\nsecond line"


def test_a_kept_talk_is_never_overwritten_by_another(play, model: phirt.Model, tmp_path: Path) -> None:
    first, second = tmp_path / "a.phirt", tmp_path / "b.phirt"
    play("a one", kept_in=first)
    play("b one", kept_in=second)
    earlier = first.read_bytes()
    played = play("/reset", "a new one", kept_in=first)
    assert first.read_bytes() == earlier and str(first) in played.stderr
    play(f"/load {second}", "b two", kept_in=first)
    assert first.read_bytes() == earlier
    assert [m.content for m in model.load_chat(second).messages[::2]] == ["b one", "b two"]


def test_what_cannot_be_saved_to_costs_one_line(play, tmp_path: Path) -> None:
    damaged = tmp_path / "talk.phirt"
    play("hi", f"/save {damaged}")
    damaged.write_bytes(damaged.read_bytes()[-60:])
    played = play("hi", f"/save {tmp_path / ('x' * 300)}", f"/save {damaged}", "still there")
    assert len(played.errors) == 2
    assert len(played.stdout.splitlines()) == 2


def test_faults_cost_one_line(play, model: phirt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr(model.generator, "prepare_media", broken)
    played = play("hi", "hi again")
    assert len(played.errors) == 2 and "ZeroDivisionError: no luck" in played.errors[0]


def test_ctrl_c_may_come_while_ctrl_c_is_answered(play, monkeypatch: pytest.MonkeyPatch) -> None:
    notice, left = Output.notice, [1]

    def interrupted(self: Output, text: str, style: str = "") -> None:
        if text == "" and left:
            left.clear()
            raise KeyboardInterrupt
        notice(self, text, style)

    monkeypatch.setattr(Output, "notice", interrupted)
    played = play(KeyboardInterrupt(), "hi")
    assert played.errors == [] and played.stdout.strip() and not left
