"""What a person types: commands and messages, files dropped into them, completion, the history."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from phirt_apps.interactive.commands import COMMANDS, NAMES, WITH_PATH, WORDS, help_text
from phirt_apps.interactive.completion import completions
from phirt_apps.interactive.dropped import find_media, media_kind, names_a_file, typed_path, without
from phirt_apps.interactive.entry import Message, Mistake, Order, is_open, read_entry
from phirt_apps.interactive.history import FileHistory, open_history

JPEG = b"\xff\xd8\xff\xe0" + bytes(60)
FLAC = b"fLaC" + bytes(60)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with files of awkward names; the current folder too."""
    names = (
        "a.jpg",
        "my photo.png",
        "it's.png",
        'a "b".png',
        "back\\slash.png",
        "plain",
        "q?x#y%41 é.jpg",
        "(1).jpg",
    )
    for name in names:
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "s.flac").write_bytes(FLAC)
    (tmp_path / "words.jpg").write_text("no picture, whatever its name says\n")
    (tmp_path / "sub dir").mkdir()
    (tmp_path / "sub dir" / "deep.png").write_bytes(JPEG)
    (tmp_path / "C:\\Users\\me\\a b.jpg").write_bytes(JPEG)  # as Windows writes a path
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found(text: str, **options: bool) -> tuple[list[str], str]:
    """The names of the files that the text names, and the rest of it."""
    files = find_media(text, **options)
    return [file.path.name for file in files], without(text, files)


@pytest.mark.parametrize(
    ("typed", "names", "rest"),
    [
        ("{0}/a.jpg", ["a.jpg"], ""),
        ("{0}/a.jpg ", ["a.jpg"], ""),  # terminals put a space behind
        ("What is in {0}/a.jpg?", ["a.jpg"], "What is in?"),
        ("{0}/a.jpg what is this", ["a.jpg"], "what is this"),
        ("'{0}/my photo.png' what", ["my photo.png"], "what"),
        ('"{0}/my photo.png"', ["my photo.png"], ""),
        ("{0}/my\\ photo.png", ["my photo.png"], ""),
        ("look {0}/my\\ photo.png here", ["my photo.png"], "look here"),
        ("{0}/my photo.png what is it", ["my photo.png"], "what is it"),
        ("{0}/sub dir/deep.png and {0}/sub\\ dir/deep.png", ["deep.png", "deep.png"], "and"),
        ("'{0}/my photo.png' '{0}/a.jpg' {0}/s.flac", ["my photo.png", "a.jpg", "s.flac"], ""),
        ("'{0}/a.jpg''{0}/s.flac'", ["a.jpg", "s.flac"], ""),
        ("file://{0}/my%20photo.png", ["my photo.png"], ""),
        ("file://{0}/a.jpg\r\nfile://{0}/s.flac\r\ntell me", ["a.jpg", "s.flac"], "tell me"),
        ("file://localhost{0}/a.jpg", ["a.jpg"], ""),
        ("FILE://{0}/q%3Fx%23y%2541%20%C3%A9.jpg.", ["q?x#y%41 é.jpg"], "."),
        ("'{0}/it'\\''s.png'", ["it's.png"], ""),
        ("what's in {0}/it's.png and what's not", ["it's.png"], "what's in and what's not"),
        ("{0}/\\(1\\).jpg", ["(1).jpg"], ""),
        ("{0}/(1).jpg", ["(1).jpg"], ""),
        ("(see {0}/a.jpg)", ["a.jpg"], "(see)"),
        ("(`{0}/a.jpg`)", ["a.jpg"], "()"),
        ('"{0}/a.jpg is it"', ["a.jpg"], '"is it"'),
        ("~/a.jpg", ["a.jpg"], ""),
        ("./plain", ["plain"], ""),  # what it is shows in its bytes, not in its name
        ("a.jpg: what?", ["a.jpg"], ": what?"),
        ("compare a.jpg, s.flac.", ["a.jpg", "s.flac"], "compare,."),
        ("my photo.png", ["my photo.png"], ""),
    ],
)
def test_a_file_that_is_named_is_found(folder: Path, typed: str, names: list[str], rest: str) -> None:
    assert found(typed.format(folder)) == (names, rest)


@pytest.mark.parametrize(
    "typed",
    [
        "{0}/nothing.jpg is missing",
        "{0}/words.jpg",
        "{0}/pipe.jpg",  # and nobody waits for its writer
        "{0}/sub dir",
        "http://example.org/a.jpg and https://example.org{0}/a.jpg",
        "file://elsewhere{0}/a.jpg",
        "plain words, no file is meant by plain",
        "C:\\Users\\me\\x.jpg",
        "and/or, 1/2, /, //, ~, ./, '', \"\", \\, file:, file:///, ~nobody-has-this-name/x.jpg",
        "{0}/\0.jpg",
        "{0}/" + "x" * 5000 + ".jpg",
    ],
)
def test_what_names_no_media_file_stays_text(folder: Path, typed: str) -> None:
    typed = typed.format(folder)
    assert found(typed) == ([], typed)


def test_paths_of_windows(folder: Path) -> None:
    for typed in ('"C:\\Users\\me\\a b.jpg"', "C:\\Users\\me\\a b.jpg", "C:\\Users\\me\\a b.jpg "):
        assert found(typed, windows=True) == (["C:\\Users\\me\\a b.jpg"], "")
    asked = 'What is "C:\\Users\\me\\a b.jpg" ?'
    assert found(asked, windows=True) == (["C:\\Users\\me\\a b.jpg"], "What is ?")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="/"),
        min_size=1,
        max_size=20,
    ),
    way=st.sampled_from(["quoted", "escaped", "url", "double"]),
    words=st.sampled_from(["", "what is this", "it's here:", "\n", "/x", "http://x.org/a.jpg"]),
)
def test_any_name_may_be_dropped(tmp_path_factory, name: str, way: str, words: str) -> None:
    folder = tmp_path_factory.mktemp("drop")
    path = folder / f"{name}.jpg"
    if len(path.name.encode()) > 200:
        return
    path.write_bytes(JPEG)
    escaped = "".join(c if c.isalnum() or c in "/._-" else f"\\{c}" for c in str(path))
    double = "".join(f"\\{c}" if c in '"\\$`' else c for c in str(path))
    spelled = {
        "quoted": shlex.quote(str(path)),
        "escaped": escaped,
        "url": f"file://{quote(str(path))}",
        "double": f'"{double}"',
    }
    [file] = find_media(f"{spelled[way]} {words}")
    assert file.path == path and without(f"{spelled[way]} {words}", [file]) == words.strip()


@settings(deadline=None)
@example("~\0")
@given(st.text(st.sampled_from("ab/\\'\" .:~()\n") | st.characters(), max_size=60))
def test_no_text_is_an_error(text: str) -> None:
    assert without(text, find_media(text)) == text.strip()
    assert isinstance(typed_path(text), Path) and names_a_file(text) in (True, False)
    read_entry(text, NAMES)
    completions(text, WORDS, WITH_PATH)


def test_kinds(folder: Path, examples: Path) -> None:
    assert media_kind(examples / "shapes.png") == "image" and media_kind(examples / "seven.flac") == "audio"
    assert media_kind(folder / "plain") == "image" and media_kind(folder / "words.jpg") is None
    assert names_a_file(f"'{folder}/words.jpg'") and names_a_file("~/sub\\ dir/deep.png")
    assert (
        not names_a_file(str(folder))
        and not names_a_file(f"{folder}/words.jpg is it")
        and not names_a_file("words.jpg")
    )


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("a.jpg", "a.jpg"),
        ("  a.jpg  ", "a.jpg"),
        ("my photo.png", "my photo.png"),
        ("'my photo.png'", "my photo.png"),
        ('"my photo.png"', "my photo.png"),
        ("my\\ photo.png", "my photo.png"),
        ("it's.png", "it's.png"),
        ("it\\'s.png", "it's.png"),
        ('a "b".png', 'a "b".png'),
        ("back\\slash.png", "back\\slash.png"),
        ("~/my photo.png", "my photo.png"),
        ("~/my\\ photo.png", "my photo.png"),
        ("'~/my photo.png'", "my photo.png"),
        ("sub dir/deep.png", "sub dir/deep.png"),
        ("file://{0}/my%20photo.png", "my photo.png"),
    ],
)
def test_an_argument_names_one_file_in_many_ways(folder: Path, typed: str, name: str) -> None:
    assert (folder / typed_path(typed.format(folder))).resolve() == (folder / name).resolve()


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        ("hello", Message("hello")),
        ("  hello \n", Message("hello")),
        ("/help", Order("/help", "")),
        ("/HELP", Order("/help", "")),
        ("?", Order("/help", "")),
        ("/?", Order("/help", "")),
        ("/bye", Order("/quit", "")),
        ("/exit", Order("/quit", "")),
        ("/clear", Order("/reset", "")),
        ("/image  my photo.png ", Order("/image", "my photo.png")),
        ('/result {"a":\n1}', Order("/result", '{"a":\n1}')),
        ("/etc/hosts is what?", Message("/etc/hosts is what?")),
        ("/etc is a folder", Message("/etc is a folder")),
        ("/etc", Message("/etc")),
        ("/ is the root", Message("/ is the root")),
        ("/s means that it is not meant", Message("/s means that it is not meant")),
        ("/shrug, what now", Message("/shrug, what now")),
        ("/2 of it", Message("/2 of it")),
        ("/*comment*/ what is this", Message("/*comment*/ what is this")),
        ("/straße", Message("/straße")),
        ("//help", Message("/help")),
        ("// a comment", Message("/ a comment")),
        (" /help", Message("/help")),
        ('"""/help"""', Message("/help", literal=True)),
        ('"""\n  two\nlines\n"""', Message("  two\nlines", literal=True)),
        ('""""""', Message("", literal=True)),
        ('"""', Message('"""')),
        ('he said """no"""', Message('he said """no"""')),
    ],
)
def test_what_was_typed(typed: str, entry: Message | Order) -> None:
    assert read_entry(typed, NAMES) == entry


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("/hlep", "/help"),
        ("/hepl me please", "/help"),
        ("/quite", "/quit"),
        ("/ext", "/exit"),
        ("/q", None),
        ("/qui", "/quit"),
        ("/imgae x.jpg", "/image"),
        ("/images", "/image"),
        ("/rest", "/reset"),
        ("/", "/?"),
        ("/picture", None),
        ("/picture x", None),
    ],
)
def test_a_mistyped_command_is_told_the_nearest(typed: str, near: str | None) -> None:
    entry = read_entry(typed, NAMES)
    assert isinstance(entry, Mistake)
    word = typed.split()[0]
    assert entry.reason.startswith(f"unknown command {word}; ") and f"/{word} would send it" in entry.reason
    assert (
        f"did you mean {near}?" in entry.reason if near else "the commands are /image /audio" in entry.reason
    )


def test_triple_quotes_stay_open_until_they_are_closed() -> None:
    for text, state in [
        ('"""', True),
        ('"""a', True),
        ('"""a"""', False),
        ('""""""', False),
        ('a """', False),
        ('""""', True),
    ]:
        assert is_open(text) is state
        assert is_open(f"  {text}\n") is state


def test_the_help_names_every_spelling() -> None:
    assert all(spelling in help_text() for spelling in NAMES) and len(COMMANDS) == len(set(NAMES.values()))


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("/s", ["/save ", "/stats"]),
        ("/image", ["/image "]),
        ("/image my", ["my photo.png"]),
        ("/image ~/my", ["~/my photo.png"]),
        ("/image su", ["sub dir/"]),
        ("/image sub dir/", ["sub dir/deep.png"]),
        ("/image nothing/", []),
        ("/image .h", [".hidden"]),
        ("/reset pl", []),
        ("hello", []),
        ("hello pl", []),
        ("what is ./my", ["./my\\ photo.png"]),
        ("what is ./my\\ ph", ["./my\\ photo.png"]),
        ("what is ~/sub\\ dir/d", ["~/sub\\ dir/deep.png"]),
        ("/usr/bi", ["/usr/bin/"]),
        ("and/or", []),
    ],
)
def test_completion(folder: Path, line: str, texts: list[str]) -> None:
    (folder / ".hidden").touch()
    offered = completions(
        line, ["/image", "/audio", "/reset", "/save", "/stats"], ["/image", "/audio", "/save"]
    )
    assert [one.text for one in offered] == texts
    assert all(line[: len(line) - one.replaced] + one.text for one in offered)


def test_the_history_is_the_persons_own(tmp_path: Path) -> None:
    path, notices = tmp_path / "state" / "phirt" / "history", []
    first = FileHistory(path, notices.append)
    for text in ("one", "two\nlines \\n", "ü\u2028\x85\r", "caf\udce9"):
        first.append_string(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = FileHistory(path, notices.append)
    assert list(again.load_history_strings()) == ["caf?", "ü\u2028\x85\r", "two\nlines \\n", "one"]
    path.chmod(0o644)
    again.append_string("x" * 30_000)  # too long to be worth it
    again.append_string("three")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert next(iter(FileHistory(path, notices.append).load_history_strings())) == "three"
    assert notices == []


def test_the_history_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("".join(f"{i}\n" for i in range(2500)))
    assert len(list(FileHistory(path, print).load_history_strings())) == 1000
    assert path.read_text().split("\n")[0] == "1500"


def test_a_history_that_cannot_be_kept_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    for path in (tmp_path / "file" / "history", tmp_path / "link"):
        notices: list[str] = []
        history = FileHistory(path, notices.append)
        history.append_string("one")
        history.append_string("two")
        assert len(notices) == 1 and str(path) in notices[0]
        assert history.get_strings()[-2:] == ["one", "two"]
    assert not target.exists()


def test_a_user_without_a_home_has_a_history_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home(*_: object, **__: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    notices: list[str] = []
    monkeypatch.setattr("platformdirs.user_state_path", no_home)
    monkeypatch.chdir(tmp_path)
    open_history(notices.append).append_string("one")
    assert len(notices) == 1 and list(tmp_path.iterdir()) == []
