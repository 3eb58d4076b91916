"""Models that have names, and a user's defaults: the file, the environment, the command line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from phirt.errors import ConfigError
from phirt_apps import models, settings
from phirt_apps.cli import app

Phirt = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a settings file that is not there yet."""
    for key in settings.KEYS:
        monkeypatch.delenv(settings.variable(key), raising=False)
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setenv("PHIRT_CONFIG", str(path))
    return path


@pytest.fixture
def run_phirt(file: Path) -> Phirt:
    """Runs a command with the settings of the test; `status` is the exit status that it must have."""

    def run_command(*arguments: object, status: int = 0) -> Result:
        result = CliRunner().invoke(app, list(map(str, arguments)), input="")
        assert result.exit_code == status, result.output
        assert status == 0 or (result.stdout == "" and result.stderr.count("\n") == 1)
        return result

    return run_command


def _written(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_a_model_gets_a_name_and_loses_it(run_phirt: Phirt, bundle: Path, file: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.iterdir()}
    assert run_phirt("add", bundle, "--name", "mine").stdout == f"mine\t{bundle}\n"
    by_folder = run_phirt("tokens", "-m", bundle, "the quick brown fox", "--json").stdout
    assert run_phirt("tokens", "-m", "mine", "the quick brown fox", "--json").stdout == by_folder
    assert run_phirt("tokens", "--model", "mine", "the quick brown fox", "--json").stdout == by_folder
    assert run_phirt("inspect", "mine").stdout == run_phirt("inspect", bundle).stdout
    run_phirt("verify", "mine")
    listed = json.loads(run_phirt("list", "--json").stdout)["models"]
    assert [(row["name"], row["default"]) for row in listed] == [("mini", True), ("mine", False)]
    assert listed[1]["folder"] == str(bundle) and listed[1]["bytes"] > 0
    assert "stay in" in run_phirt("remove", "mine").stderr
    assert {path: path.stat().st_mtime_ns for path in bundle.iterdir()} == before
    line = run_phirt("tokens", "-m", "mine", "hi", status=1).stderr
    assert line == "error: mine is not a folder, nor the name of a model; names: mini\n"


def test_the_name_is_by_default_the_folders(run_phirt: Phirt, bundle: Path, monkeypatch) -> None:
    monkeypatch.chdir(bundle.parent)
    assert run_phirt("add", bundle.name).stdout == f"{bundle.name}\t{bundle}\n"
    monkeypatch.chdir("/")
    run_phirt("tokens", "-m", bundle.name, "hi")


def test_adding_twice_is_fine_and_another_folder_is_not(
    run_phirt: Phirt, bundle: Path, tmp_path: Path
) -> None:
    run_phirt("add", bundle, "--name", "mine")
    run_phirt("add", bundle, "--name", "mine")
    other = shutil.copytree(bundle, tmp_path / "other")
    line = run_phirt("add", other, "--name", "mine", status=1).stderr
    assert str(bundle) in line and "phirt remove mine" in line


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "a b", "-m", "mini", "x" * 65, "é\n"])
def test_names_that_are_none(run_phirt: Phirt, bundle: Path, name: str) -> None:
    assert "--name" in run_phirt("add", bundle, f"--name={name}", status=2).stderr


def test_what_is_no_model_gets_no_name(run_phirt: Phirt, tmp_path: Path, file: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        run_phirt("add", place, "--name", "mine", status=1)
    assert not file.exists()


def test_a_folder_goes_before_a_name(
    run_phirt: Phirt, bundle: Path, nano: Path, tmp_path: Path, monkeypatch
) -> None:
    run_phirt("add", bundle, "--name", "twice")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice").symlink_to(nano, target_is_directory=True)
    assert "nano" in run_phirt("inspect", "twice").stdout.splitlines()[0]
    (tmp_path / "twice").unlink()
    (tmp_path / "twice").mkdir()  # a folder that is no model is nobody's idea of one
    assert "tiny" in run_phirt("inspect", "twice").stdout.splitlines()[0]


def test_a_model_that_is_gone_or_damaged_is_listed_and_said(
    run_phirt: Phirt, bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    run_phirt("add", copy)
    (copy / "manifest.json").write_text("{")
    row = json.loads(run_phirt("list", "--json").stdout)["models"][1]
    assert row["bytes"] is None and "manifest.json" in row["error"]
    assert "unusable" in run_phirt("list").stdout
    shutil.rmtree(copy)
    assert "phirt remove copy" in run_phirt("tokens", "-m", "copy", "hi", status=1).stderr
    run_phirt("remove", "copy")


def test_what_cannot_be_removed(run_phirt: Phirt, bundle: Path) -> None:
    assert "embedded" in run_phirt("remove", "mini", status=2).stderr
    run_phirt("add", bundle, "--name", "mine")
    assert "those that can be forgotten: mine" in run_phirt("remove", "other", status=1).stderr


def _prompt_tokens(run_phirt: Phirt, *arguments: object) -> int:
    return int(json.loads(run_phirt("tokens", "--json", *arguments).stdout)["total"])


def test_an_option_goes_before_the_environment_that_before_the_file_that_before_what_is_built_in(
    run_phirt: Phirt, file: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIRT_MODEL", str(nano))
    plain = _prompt_tokens(run_phirt, "hi")
    by_length = {
        text: _prompt_tokens(run_phirt, "hi", "--system", text) for text in ("a", "a b c", "a b c d e")
    }
    assert len({plain, *by_length.values()}) == 4
    run_phirt("config", "system", "a")
    assert _prompt_tokens(run_phirt, "hi") == by_length["a"]
    monkeypatch.setenv("PHIRT_SYSTEM", "a b c")
    assert _prompt_tokens(run_phirt, "hi") == by_length["a b c"]
    assert _prompt_tokens(run_phirt, "hi", "--system", "a b c d e") == by_length["a b c d e"]


def test_the_settings_reach_every_command(run_phirt: Phirt, bundle: Path, monkeypatch) -> None:
    run_phirt("add", bundle, "--name", "mine")
    run_phirt("config", "model", "mine")
    run_phirt("config", "max_new_tokens", 3)
    answer = json.loads(run_phirt("chat", "--json", "the quick").stdout)
    assert len(answer["ids"]) == 3
    assert "tiny" in run_phirt("inspect").stdout.splitlines()[0]
    assert [row["default"] for row in json.loads(run_phirt("list", "--json").stdout)["models"]] == [
        False,
        True,
    ]
    monkeypatch.setenv("PHIRT_MODEL", "mini")
    assert "mini" in run_phirt("inspect").stdout.splitlines()[0]
    assert "tiny" in run_phirt("inspect", "mine").stdout.splitlines()[0]
    monkeypatch.delenv("PHIRT_MODEL")
    assert "default" in run_phirt("remove", "mine").stderr
    assert "mini" in run_phirt("inspect").stdout.splitlines()[0]


def test_a_default_system_text_is_for_new_conversations(
    run_phirt: Phirt, bundle: Path, tmp_path: Path
) -> None:
    talk = tmp_path / "talk.phirt"
    chat = ("chat", "-m", bundle, "--conversation", talk, "--max-new-tokens", 2)
    run_phirt("config", "system", "Be brief.")
    run_phirt(*chat, "the quick")
    run_phirt(*chat, "brown fox")
    assert "holds one" in run_phirt(*chat, "--system", "Be brief.", "jumps", status=2).stderr


def test_config_shows_where_each_value_comes_from(run_phirt: Phirt, file: Path, monkeypatch) -> None:
    run_phirt("config", "temperature", "0.5")
    monkeypatch.setenv("PHIRT_SEED", "7")
    shown = json.loads(run_phirt("config", "--json").stdout)
    assert shown["path"] == str(file) and set(shown["values"]) == set(settings.KEYS)
    assert shown["values"]["temperature"] == {"value": 0.5, "from": "the file"}
    assert shown["values"]["seed"] == {"value": 7, "from": "PHIRT_SEED"}
    assert shown["values"]["max_new_tokens"] == {"value": 512, "from": "built in"}
    assert shown["values"]["model"] == {"value": "mini", "from": "built in"}
    assert str(file) in run_phirt("config").stdout
    assert run_phirt("config", "temperature").stdout == "0.5\n"
    run_phirt("config", "--unset", "temperature")
    assert run_phirt("config", "temperature").stdout == ""  # the model's
    assert "goes before it" in run_phirt("config", "seed", 3).stderr


def test_what_a_user_wrote_by_hand_stays(run_phirt: Phirt, file: Path, bundle: Path) -> None:
    _written(file, f"# mine\nseed = 3  # lucky\n\n[models]\n# the large one\nbig = '{bundle}'\n")
    run_phirt("config", "temperature", 1)
    run_phirt("add", bundle, "--name", "small")
    text = file.read_text()
    for line in ("# mine", "seed = 3  # lucky", "# the large one", f"big = '{bundle}'", "temperature = 1.0"):
        assert line in text.splitlines()
    assert settings.load_settings().models == {"big": str(bundle), "small": str(bundle)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed = \ntop_k = 1", "line 1"),
        ("seed = ", "end of document"),
        ("\n\nseed = 1\nseed = 2\n", "line 4"),
        ("temprature = 1", "'temprature' is not known here, accepted: model, provider"),
        ("temperature = 'hot'", "temperature"),
        ("threads = 0", "threads"),
        ("threads = true", "threads"),
        ("image_detail = 'finest'", "low, auto, high"),
        ("models = 3", "models"),
        ("[models]\nx = 3", "models"),
        ("[generation]\nseed = 3", "'generation' is not known here"),
        ("a = " + "[" * 5000, "TOML"),
        ("x" * 1_000_001, "too long"),
    ],
)
def test_a_file_that_is_wrong_costs_one_line_that_says_where(
    run_phirt: Phirt, file: Path, text: str, told: str
) -> None:
    _written(file, text)
    for command in (("chat", "hi"), ("tokens", "hi"), ("list",), ("config",), ("config", "seed", "3")):
        line = run_phirt(*command, status=1).stderr
        assert told in line and str(file) in line
    assert file.read_text() == text
    assert (
        run_phirt("chat", "--help").stdout and run_phirt("--version").stdout and run_phirt("devices").stdout
    )


def test_a_byte_order_mark_in_the_file(run_phirt: Phirt, file: Path) -> None:
    _written(file, "\ufeffseed = 3\n")
    assert run_phirt("config", "seed").stdout == "3\n"
    run_phirt("config", "top_k", 5)
    assert settings.load_settings() == settings.Settings(seed=3, top_k=5)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("temprature", "1"), 2, "accepted: model, provider"),
        (("models", "x"), 2, "accepted: model, provider"),
        (("temperature", "hot"), 1, "temperature"),
        (("threads", "0"), 1, "threads"),
        (("model", "nowhere"), 1, "names: mini"),
        (("--unset",), 2, "needs a KEY"),
    ],
)
def test_a_value_that_would_not_be_accepted_is_not_written(
    run_phirt: Phirt, file: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    assert told in run_phirt("config", *arguments, status=status).stderr
    assert not file.exists()


def test_a_bad_environment_variable_is_named(run_phirt: Phirt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHIRT_THREADS", "many")
    assert "PHIRT_THREADS" in run_phirt("chat", "hi", status=2).stderr
    assert "PHIRT_THREADS" not in run_phirt("chat", "hi", "--threads", "some", status=2).stderr


def test_a_text_that_looks_like_a_number_stays_text(run_phirt: Phirt) -> None:
    run_phirt("config", "system", "42")
    assert settings.load_settings().system == "42"


def test_switches_are_true_or_false(run_phirt: Phirt) -> None:
    run_phirt("config", "history", "true")
    run_phirt("config", "plain", "false")
    assert settings.load_settings().history is True and settings.load_settings().plain is False
    assert "history" in run_phirt("config", "history", "perhaps", status=1).stderr
    assert settings.load_settings().history is True


def test_a_folder_as_default_model_counts_from_anywhere(run_phirt: Phirt, bundle: Path, monkeypatch) -> None:
    monkeypatch.chdir(bundle.parent)
    run_phirt("config", "model", bundle.name)
    monkeypatch.chdir("/")
    assert "tiny" in run_phirt("inspect").stdout.splitlines()[0]


def test_many_at_once_lose_nothing(file: Path, bundle: Path) -> None:
    def add(number: int) -> None:
        settings.change_settings(
            lambda document: document.setdefault("models", {}).update({f"m{number}": "/x"})
        )

    threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(settings.load_settings().models) == {f"m{number}" for number in range(12)}


def test_a_link_to_the_file_stays_one(run_phirt: Phirt, file: Path, tmp_path: Path) -> None:
    """As those have who keep their settings in a repository."""
    real = _written(tmp_path / "dotfiles" / "phirt.toml", "seed = 3\n")
    file.parent.mkdir()
    file.symlink_to(real)
    run_phirt("config", "top_k", 5)
    assert file.is_symlink() and "top_k = 5" in real.read_text()


@pytest.mark.skipif(os.name != "posix", reason="devices are files there")
def test_a_device_is_not_replaced(run_phirt: Phirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    for place in (Path(os.devnull), tmp_path, fifo):
        monkeypatch.setenv("PHIRT_CONFIG", str(place))
        with pytest.raises(ConfigError, match="no file"):
            settings.change_settings(lambda document: None)
    assert not Path(os.devnull).is_file()


def test_a_place_that_cannot_be_written(run_phirt: Phirt, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("PHIRT_CONFIG", str(tmp_path / "taken" / "config.toml"))
    assert "cannot be written" in run_phirt("config", "seed", "3", status=1).stderr


def _stranger() -> list[str]:
    """A command prefix: a user id that the system does not know, without HOME; skips where it cannot be had.

    The capability is for an interpreter that lies in root's own folder.
    """
    prefix = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    prefix += ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
    prefix += ["env", "-u", "HOME", "-u", "XDG_CONFIG_HOME", "-u", "PHIRT_CONFIG"]
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("another user's id cannot be taken here")
    return prefix


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["config"], 0), (["list"], 0), (["tokens", "hi"], 0), (["config", "seed", "3"], 1)],
)
def test_no_home_at_all(tmp_path: Path, arguments: list[str], status: int) -> None:
    """Case 08: the defaults, and one line where a file is needed."""
    phirt_command = [sys.executable, "-c", "from phirt_apps.__main__ import main; main()"]
    done = subprocess.run(
        [*_stranger(), *phirt_command, *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr and "fault" not in done.stderr
    assert status == 0 or "PHIRT_CONFIG" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_home_that_may_not_be_looked_into(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a service that runs as somebody else with its starter's HOME."""

    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)
    with pytest.raises(ConfigError, match="Permission denied"):  # a file that was named is not passed over
        settings.load_settings()
    monkeypatch.delenv("PHIRT_CONFIG")
    assert settings.load_settings() == settings.Settings()
    assert "are not used: Permission denied" in caplog.text


def test_a_home_that_no_shell_has_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PHIRT_CONFIG", "~/phirt.toml")
    (tmp_path / "phirt.toml").write_text('[models]\nown = "~/bundle"\n', encoding="utf-8")
    (tmp_path / "bundle").mkdir()
    assert settings.settings_path() == tmp_path / "phirt.toml"
    assert models.resolve(Path("own")) == tmp_path / "bundle"
