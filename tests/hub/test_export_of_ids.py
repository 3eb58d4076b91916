"""`phirt export owner/name`: what somebody sees, what an interruption leaves, and that nothing else of phirt
opens a connection.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hub_server import COMMIT, Fault, Hub
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from phirt_apps.cli import app
from phirt_export.exporter import export_bundle

PHIRT = [sys.executable, "-c", "from phirt_apps.__main__ import main; main()"]
SHARD = "model-00002-of-00002.safetensors"
PLAIN = ("--bits", "4", "--method", "rtn")  # where it does not matter how weights are quantized


def phirt(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    command = [*PHIRT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, input="")


def phirt_here(*arguments: object) -> Result:
    """The command in this process, which has imported what it needs."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def contents(bundle: Path) -> dict[str, str]:
    """The digest of each file that a bundle's manifest names."""
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the checkpoint's own folder gives."""
    return contents(
        export_bundle(checkpoint, tmp_path_factory.mktemp("own") / "bundle", bits=4, method="rtn")
    )


def test_an_id_gives_what_its_folder_gives(
    hub: Hub, cache: Path, tmp_path: Path, exported: dict[str, str]
) -> None:
    result = phirt("export", "some/model", "-o", tmp_path / "bundle", *PLAIN)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'bundle'}\n"
    asking, fetching, *_ = result.stderr.splitlines()
    assert asking == (
        f"some/model is no folder here: asking {hub.endpoint} for main of it (--offline asks nobody)"
    )
    assert re.fullmatch(
        rf"fetching 1\.3 MB of 6 files from {hub.endpoint} into {cache} \([\d.]+ kB are there already\)",
        fetching,
    )
    assert contents(tmp_path / "bundle") == exported
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["name"] == "model"
    offline = phirt_here("export", "some/model", "-o", tmp_path / "again", "--offline", *PLAIN)
    assert offline.exit_code == 0 and "asking" not in offline.stderr
    snapshot = phirt_here("export", cache / "snapshots" / COMMIT, "-o", tmp_path / "snapshot", *PLAIN)
    assert snapshot.exit_code == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "snapshot") == exported


def test_ctrl_c_in_a_shard_and_the_same_command_again(
    hub: Hub, cache: Path, tmp_path: Path, exported: dict[str, str]
) -> None:
    reached, gate = threading.Event(), threading.Event()
    hub.faults = [Fault(f"/some/model/{SHARD}", stop=(100_000, reached, gate))]
    command = [*PHIRT, "export", "some/model", "-o", str(tmp_path / "bundle"), *PLAIN]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert reached.wait(60)
    (partial,) = waited_for(cache / "blobs", 100_000)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    gate.set()
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "stopped; what has arrived is kept: the same command goes on from here"
    assert partial.stat().st_size == 100_000
    hub.seen.clear()
    assert phirt("export", "some/model", "-o", tmp_path / "bundle", *PLAIN).returncode == 0
    assert contents(tmp_path / "bundle") == exported
    assert [(r.path, r.range) for r in hub.seen] == [
        ("/api/models/some/model/revision/main", None),
        (f"/some/model/resolve/{COMMIT}/{SHARD}", "bytes=100000-"),
        (f"/some/model/{SHARD}", "bytes=100000-"),
    ]


def waited_for(folder: Path, size: int) -> list[Path]:
    """The unfinished files of that size, once there are any."""
    for _ in range(600):
        found = [path for path in folder.glob("*.incomplete") if path.stat().st_size == size]
        if found:
            return found
        threading.Event().wait(0.05)
    raise AssertionError(f"nothing of {size} bytes in {folder}")


def test_mistakes_are_one_line(hub: Hub, cache: Path, tmp_path: Path, checkpoint: Path) -> None:
    hub.tokens["some/gated"] = "secret"
    hub.publish("some/gated", checkpoint)
    for arguments, status, line in (
        (("some/other",), 1, "error: there is no folder 'some/other' here, and "),
        (("some/model", "--revision", "v9"), 1, "error: some/model has no revision 'v9'; "),
        (("some/model", "--token", "bad"), 1, f"error: {hub.endpoint} does not accept the token (401); "),
        (("some/gated",), 1, "error: some/gated is gated (401): accept its terms at "),
        (
            ("some/model", "--offline"),
            1,
            "error: some/model is no folder, and no whole copy of revision 'main'",
        ),
        ((checkpoint, "--revision", "v1"), 2, "error: --revision is for a published checkpoint, and "),
    ):
        result = phirt("export", *arguments, "-o", tmp_path / "bundle")
        assert (result.returncode, result.stdout) == (status, "")
        assert result.stderr.splitlines()[-1].startswith(line)
        assert len(result.stderr.splitlines()[-1]) < 300


def test_an_adapter_of_a_published_base(hub: Hub, cache: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Both are fetched; what is merged is what the base gives with the adapter's product added by hand."""
    name = "model.layers.1.mlp.down_proj"
    generator = np.random.default_rng(5)
    a, b = (generator.normal(size=shape).astype(np.float32) for shape in ((2, 96), (64, 2)))
    adapter, merged = tmp_path / "adapter", shutil.copytree(checkpoint, tmp_path / "merged")
    adapter.mkdir()
    prefix = f"base_model.model.{name}"
    save_file(
        {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, adapter / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["down_proj"]}
    settings["base_model_name_or_path"] = "some/model"
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    hub.publish("some/lora", adapter)
    for file in merged.glob("*.safetensors"):
        tensors = load_file(file)
        for key in tensors:
            if key.endswith(f"{name.removeprefix('model.')}.base_layer.weight"):
                tensors[key] = tensors[key] + (b * np.float32(1.5)) @ a
        save_file(tensors, file)
    export_bundle(merged, tmp_path / "expected", bits=32)
    result = phirt("export", "some/lora", "-o", tmp_path / "bundle", "--bits", 32)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "bundle") == contents(tmp_path / "expected")
    again = phirt_here(
        "export", adapter, "--base", checkpoint, "-o", tmp_path / "again", "--bits", 32, "--offline"
    )
    assert again.exit_code == 0 and contents(tmp_path / "again") == contents(tmp_path / "expected")
    wrong = phirt_here("export", checkpoint, "--base", checkpoint, "-o", tmp_path / "again")
    assert wrong.exit_code == 2 and "--base is for the folder of an adapter" in wrong.stderr


def test_no_network_is_one_line(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = phirt("export", "some/model", "-o", tmp_path / "bundle")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: http://127.0.0.1:9 cannot be reached (")


def test_the_environment_can_forbid_connections(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = phirt("export", "some/model", "-o", tmp_path / "bundle")
    assert result.returncode == 1 and "no whole copy of revision 'main' is kept" in result.stderr
    assert not hub.seen


# Runs one command after the other in a process in which every use of the network is written down.
WATCHED = """
import json, os, sys

opened = []

def watch(event, arguments):
    if event.startswith("socket."):
        local = event == "socket.__new__" and arguments[1] not in (2, 10)  # as event loops have
        if not local and event not in ("socket.gethostname",):
            opened.append([event, repr(arguments)])

sys.addaudithook(watch)
from phirt_apps.bench import peaks
# Processes of their own, which only compute: what they do is in the tests of the command.
peaks.measure_reading = lambda threads: peaks.read_bandwidth(threads, 1 << 22)
peaks.measure_multiplying = lambda threads: None
from typer.testing import CliRunner
from phirt_apps.cli import app

results = []
for command in json.loads(sys.stdin.read()):
    opened.clear()
    result = CliRunner().invoke(app, command)
    results.append([command, result.exit_code, result.stderr[-400:], list(opened)])
os.write(1, json.dumps(results).encode())
os._exit(0)
"""


def watched(commands: list[list[object]]) -> list[tuple[list[str], int, str, list[list[str]]]]:
    """For each command its exit status, the end of what it says, and its uses of the network."""
    given = json.dumps([[str(word) for word in command] for command in commands])
    result = subprocess.run(
        [sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=300, input=given, check=True
    )
    return [tuple(entry) for entry in json.loads(result.stdout)]


def test_only_an_export_of_an_id_opens_a_connection(
    hub: Hub, cache: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = Path(__file__).parents[2] / "apps" / "examples"
    monkeypatch.setenv("PHIRT_CONFIG", str(tmp_path / "settings.toml"))
    bundle, prompt = tmp_path / "bundle", ["--max-new-tokens", "3", "What is this?"]
    text = tmp_path / "text.txt"
    text.write_text("The sea is wide, and old boats carry people over the waves.\n" * 8)
    questions, rows, few = tmp_path / "questions.jsonl", tmp_path / "rows.jsonl", ["--max-new-tokens", "3"]
    questions.write_text('{"question": "How many?", "answer": "#### 3"}\n')
    (tmp_path / "web.toml").write_text(
        '[[source]]\nname = "pages"\nfiles = ["pages.jsonl"]\nquality = { rules = "none" }'
    )
    (tmp_path / "pages.jsonl").write_text(
        '{"text": "The sea is wide, and old boats carry people over it."}\n'
    )
    rows.write_text('{"prompt": "How many?", "answer": "Three."}\n')
    ((_, status, _, opened),) = watched([["export", "some/model", "-o", tmp_path / "fetched", *PLAIN]])
    assert status == 0 and opened, "the export of an id does, and the hook sees it"
    commands: list[list[object]] = [
        ["export", "some/model", "-o", tmp_path / "kept", "--offline", *PLAIN],
        ["export", checkpoint, "-o", bundle],
        ["chat", "--image", examples / "shapes.png", *prompt],
        ["chat", "--audio", examples / "seven.flac", "--json", *prompt],
        ["chat", "-m", bundle, "--temperature", "1", *prompt],
        ["transcribe", examples / "seven.flac"],
        ["tokens", "--image", examples / "shapes.png", "What is this?"],
        ["add", bundle, "--name", "mine"],
        ["list"],
        ["inspect", "mine"],
        ["verify", "mine"],
        ["config"],
        ["devices"],
        [
            "bench",
            "-m",
            bundle,
            *["--prompt-tokens", "16", "--depth", "16", "--new-tokens", "2", "--repeats", "1"],
        ],
        ["eval", bundle, "--against", checkpoint, "--text", text, "--tokens", "64"],
        ["remove", "mine"],
        ["rollout", questions, "-m", bundle, "-o", tmp_path / "rollouts", "--samples", "1", *few],
        [
            "train",
            "finetune",
            "--data",
            rows,
            "--adapter",
            tmp_path / "lora",
            "-m",
            checkpoint,
            "--epochs",
            "1",
        ],
        ["curate", tmp_path / "web.toml", "-o", tmp_path / "curated"],
    ]
    for command, status, said, opened in watched(commands):
        assert (status, opened) == (0, []), (command, said)


def test_every_command_is_in_the_test_above() -> None:
    """A new command opens no connection either: it has to be added there."""
    from phirt_apps.commands import all_commands

    source = Path(__file__).read_text(encoding="utf-8")
    # The server listens: tests/server has what it opens beyond; tests/desktop looks at the window.
    with_tests_of_their_own = {"serve", "train", "desktop"}
    missing = [name for name, _ in all_commands() if not re.search(rf'\[\s*"{name}"', source)]
    assert set(missing) <= with_tests_of_their_own
