"""What lies in a run's folder is used only where it is whole and of this recipe and these data, and by one
process at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from small_recipe import SMALL_MODEL

from phirt.errors import ConfigError
from phirt.fields import write_dataclass
from phirt_train.file_digests import FileDigests
from phirt_train.loop import Interrupted, StageRun
from phirt_train.progress import Progress
from phirt_train.recipe import load_recipe
from phirt_train.run_marks import alone
from phirt_train.runner import run_recipe
from phirt_train.stage_fields import RopeChange
from phirt_train.step_run import with_found

RECIPE = (
    """
name = "small"
"""
    + SMALL_MODEL
    + """
[[stage]]
name = "text"
objective = "language_modeling"
trains = ["model."]
steps = 4
batch = 2
schedule = { peak = 1e-3, warmup_steps = 1 }
data = { row_tokens = 16, documents = { "sea.jsonl" = 1.0 } }

[[stage]]
name = "more"
objective = "language_modeling"
starts_from = ["text"]
trains = ["model."]
steps = 1
batch = 2
schedule = { continues = "text" }
data = { row_tokens = 16, documents = { "hill.jsonl" = 1.0 } }
"""
)


def write(folder: Path, name: str, words: str) -> None:
    texts = [json.dumps({"text": f"The {words}, and number {n} is long."}) + "\n" for n in range(30)]
    (folder / name).write_text("".join(texts))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    write(tmp_path, "sea.jsonl", "sea is wide")
    write(tmp_path, "hill.jsonl", "hill is high")
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        run_recipe(folder, folder / "run")
    assert "\n" not in str(error.value)
    return str(error.value)


def stop_in(folder: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Run up to a step of the first stage, whose state is then on disk."""
    with monkeypatch.context() as patched:
        one_step = StageRun._one_step

        def stopping(run: StageRun) -> None:
            one_step(run)
            if run.step == step:
                run._stop = 2

        patched.setattr(StageRun, "_one_step", stopping)
        with pytest.raises(Interrupted):
            run_recipe(folder, folder / "run")


@pytest.mark.parametrize("kept", [0, 100, -1])
@pytest.mark.parametrize("name", ["text/model.safetensors", "text/moments.safetensors"])
def test_damaged_weights_are_named(folder: Path, name: str, kept: int) -> None:
    run_recipe(folder, folder / "run", until="text")
    path = folder / "run" / name
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(folder)
    assert message.startswith(f"{path} is damaged: ")
    assert message.endswith(f"delete {path.parent} and the folders of the stages that start from it")


def test_lost_weights_are_named(folder: Path) -> None:
    run_recipe(folder, folder / "run", until="text")
    (folder / "run/text/model.safetensors").unlink()
    assert refused(folder).startswith(f"{folder}/run/text/model.safetensors is missing; delete ")


@pytest.mark.parametrize("content", [b"", b"garbage", "cut", "of something else"])
def test_a_damaged_state_is_named(
    folder: Path, content: bytes | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in(folder, monkeypatch, 2)
    path = folder / "run/text/state.safetensors"
    whole = path.read_bytes()
    if content == "of something else":  # its tensors are called otherwise
        path.write_bytes(whole.replace(b"weight.model.norm", b"weight.model.nose"))
        assert path.read_bytes() != whole
    else:
        path.write_bytes(whole[:-9] if isinstance(content, str) else content)
    message = refused(folder)
    assert message.startswith(f"{path} is damaged: ")
    assert message.endswith("; delete that file, and the stage begins anew")


def test_changed_data_are_noticed_in_and_after_a_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recipe.toml").write_text(
        RECIPE.replace("[tokenizer]", '[tokenizer]\nsources = ["hill.jsonl"]')
    )
    stop_in(folder, monkeypatch, 2)
    write(folder, "sea.jsonl", "sea is deep")
    assert "state.safetensors belongs to another recipe" in refused(folder)
    write(folder, "sea.jsonl", "sea is wide")
    run_recipe(folder, folder / "run")
    write(folder, "sea.jsonl", "sea is deep")
    assert "was trained with another recipe" in refused(folder)


def test_a_finished_run_keeps_its_checkpoint(folder: Path) -> None:
    run_recipe(folder, folder / "run")
    path = folder / "run/checkpoint/model.safetensors"
    before = path.stat().st_mtime_ns
    run_recipe(folder, folder / "run")
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["sources", "text", "torn"])
def test_a_tokenizer_of_something_else_is_made_again(folder: Path, change: str) -> None:
    def stop(progress: Progress) -> None:
        if progress.activity == "loading weights":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run_recipe(folder, folder / "run", report=stop)
    path = folder / "run/tokenizer.json"
    before = path.read_bytes()
    if change == "sources":
        sources = '[tokenizer]\nsources = ["hill.jsonl"]'
        (folder / "recipe.toml").write_text(RECIPE.replace("[tokenizer]", sources))
    elif change == "text":
        write(folder, "hill.jsonl", "mountains move mightily")
    else:
        (folder / "run/.tokenizer.json.sha256").write_bytes(b"")
        path.write_bytes(before[:100])
    run_recipe(folder, folder / "run", until="text")
    run_recipe(folder, folder / "fresh", until="text")
    assert path.read_bytes() == (folder / "fresh/tokenizer.json").read_bytes()
    assert (path.read_bytes() == before) == (change == "torn")


def test_one_process_trains_in_a_folder(folder: Path) -> None:
    with alone(folder), pytest.raises(ConfigError, match="another process trains in"), alone(folder):
        pass
    with alone(folder):
        pass
    (folder / "run").mkdir()
    with alone(folder / "run"):
        assert refused(folder).startswith(f"another process trains in {folder}/run; wait until")


def test_a_files_digest_is_kept_with_its_size_and_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = folder / "sea.jsonl", folder / "files.json"
    first = FileDigests(kept)
    assert first.of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    first.save()
    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", None)  # it is not read again
        FileDigests(kept).of(path)
    write(folder, "sea.jsonl", "sea is deep")
    assert FileDigests(kept).of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    kept.write_bytes(b"[")
    assert FileDigests(kept).of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


PREPARE = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Options:
    pass

def prepare(task, options):
    for name in ("sea.jsonl", "hill.jsonl"):
        (task.output / name).write_bytes((task.data / name).read_bytes())
"""


def test_what_was_prepared_belongs_to_the_files_that_were_read(folder: Path) -> None:
    (folder / "prepare.py").write_text(PREPARE)
    (folder / "recipe.toml").write_text(RECIPE + '[prepare]\nmodule = "prepare.py"\n')
    run_recipe(folder, folder / "run", until="text")
    (folder / "notes.txt").write_text("that nobody reads")
    run_recipe(folder, folder / "run", until="text")
    write(folder, "hill.jsonl", "hill is bare")
    assert f"{folder}/run/prepared was written from another hill.jsonl than" in refused(folder)


def test_a_rope_that_was_found_has_the_context_that_its_stage_says(folder: Path) -> None:
    recipe = load_recipe(folder)
    rope = write_dataclass(dataclasses.replace(recipe.model.decoder.rope, context=512))
    place = folder / "run/made/search"
    place.mkdir(parents=True)
    (place / "rope.json").write_text(json.dumps(rope))
    first, second = recipe.stages
    for context in (4096, 512):
        change = RopeChange(found="made/search/rope.json", context=context)
        changed = dataclasses.replace(recipe)
        object.__setattr__(changed, "stages", (first, dataclasses.replace(second, rope=change)))
        if context == 512:
            assert with_found(changed, folder / "run").stages[1].rope == RopeChange.of(
                dataclasses.replace(recipe.model.decoder.rope, context=512)
            )
        else:
            with pytest.raises(ConfigError, match="a context of 4096, and the search was for 512; give"):
                with_found(changed, folder / "run")
