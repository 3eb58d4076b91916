"""A user's adapters through `phirt.load`, chats, saved conversations and the command line, on an exported
bundle. The reference model with the adapter in its weights says which ids are right.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from loras import fused
from safetensors.torch import save_file
from three_ways import load_reference
from typer.testing import CliRunner

import phirt
from phirt.bundle.peft import read_lora
from phirt.errors import AdapterError, ConfigError, ConversationError
from phirt_apps.cli import app
from phirt_export.exporter import export_bundle
from phirt_export.reference import Model

TOKENS = 12


def save_adapter(folder: Path, seed: int, **changes) -> Path:
    """An adapter of PEFT's for separate projections, random."""
    rng, tensors = torch.Generator().manual_seed(seed), {}
    sizes = {
        "self_attn.q_proj": (128, 64), "self_attn.v_proj": (64, 64), "self_attn.o_proj": (64, 128),
        "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
    }  # fmt: skip
    for layer in range(3):
        for name, (rows, columns) in sizes.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn((5, columns), generator=rng) * columns**-0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn((rows, 5), generator=rng) * 0.4
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 5, "lora_alpha": 10, "target_modules": sorted(sizes)} | changes
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Two adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(folder / name, seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def bundle(talking_checkpoint, tmp_path_factory) -> Path:
    return export_bundle(talking_checkpoint, tmp_path_factory.mktemp("bundle") / "bundle", bits=32)


@pytest.fixture(scope="module")
def references(talking_checkpoint, bundle, folders) -> dict[str | None, Model]:
    """The reference model by adapter."""
    base = load_reference(talking_checkpoint)
    sizes = base.config.decoder
    return {None: base} | {name: fused(base, read_lora(folder, sizes)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def model(bundle, folders):
    with phirt.load(bundle, threads=1, adapters=folders) as model:
        yield model


def ask(chat: phirt.Chat, text: str, **media) -> phirt.Result:
    return chat.send(text, max_new_tokens=TOKENS, speculation=False, **media).result


def assert_right(result: phirt.Result, reference: Model) -> None:
    """Every id is the reference's most likely one after those before it."""
    ids = list(result.prompt_token_ids)
    for token in result.token_ids:
        with torch.no_grad():
            assert token == int(reference(torch.tensor([ids]), None, "none")[0, -1].argmax())
        ids.append(token)
    assert len(result.token_ids) == TOKENS or result.finish_reason == "stop"


def test_each_chat_answers_with_its_own_adapter_in_threads(model, references):
    assert model.adapters == ("one", "two")
    results: dict[str | None, list[phirt.Result]] = {}

    def talk(name: str | None) -> None:
        chat = model.chat(adapter=name)
        results[name] = [ask(chat, text) for text in ("What is this?", "And then?")]

    threads = [threading.Thread(target=talk, args=(name,)) for name in (None, "one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, reference in references.items():
        for result in results[name]:
            assert (result.adapter, result.user_adapter) == ("none", name)
            assert_right(result, reference)
        assert results[name][1].usage.cached_tokens > 0  # its own history, not run again
    assert len({result[0].token_ids for result in results.values()}) == 3


def test_no_chat_reads_what_another_adapter_has_cached(model, references):
    for name in ("one", None, "two", "one"):
        result = ask(model.chat(adapter=name), "The same long question, word for word, for everybody here.")
        assert_right(result, references[name])


def test_a_change_in_a_chat_runs_the_history_again_once(model, references):
    chat = model.chat(adapter="one")
    ask(chat, "What is this?")
    chat.use_adapter("two")
    changed, following = ask(chat, "And then?"), ask(chat, "And now?")
    assert (chat.user_adapter, changed.user_adapter, changed.usage.cached_tokens) == ("two", "two", 0)
    assert following.usage.cached_tokens >= changed.usage.prompt_tokens
    for result in (changed, following):
        assert_right(result, references["two"])
    fork = chat.fork()
    chat.use_adapter(None)
    assert_right(ask(chat, "Well?"), references[None])
    assert_right(ask(fork, "Well?"), references["two"])


def test_it_adds_to_the_adapter_that_a_picture_brings(model, bundle, references):
    picture = np.full((40, 60, 3), 200, np.uint8)
    for name in ("one", None):
        result = ask(model.chat(adapter=name), "What is this?", images=[picture])
        assert (result.adapter, result.user_adapter) == ("vision", name)
        media = model.generator.prepare_media([picture], [])
        message = phirt.Message("user", "What is this?", media)
        (span,) = model.generator.encode_prompt([message]).spans
        ids, features = list(result.prompt_token_ids), torch.from_numpy(span.features.copy())
        for token in result.token_ids:
            with torch.no_grad():
                logits = references[name](torch.tensor([ids]), features, "vision")[0, -1]
            assert token == int(logits.argmax())
            ids.append(token)


def test_saved_conversations_name_their_adapter(model, bundle, folders, references, tmp_path):
    chat = model.chat(adapter="one")
    ask(chat, "What is this?")
    chat.save(tmp_path / "talk")
    restored = model.load_chat(tmp_path / "talk")
    assert restored.user_adapter == "one"
    following = ask(restored, "And then?")
    assert following.usage.cached_tokens > 0
    assert_right(following, references["one"])

    other = model.load_chat(tmp_path / "talk", adapter="two")
    changed = ask(other, "And then?")
    assert (other.user_adapter, changed.usage.cached_tokens) == ("two", 0)
    assert_right(changed, references["two"])

    with phirt.load(bundle, threads=1, adapters={"renamed": folders["one"]}) as renamed:
        assert renamed.load_chat(tmp_path / "talk").user_adapter == "renamed"
    for adapters in ({}, {"one": folders["two"]}):  # known by what it computes, not by its name
        held = pytest.raises(ConversationError, match=r"with the adapter 'one' \(sha256 [0-9a-f]{12}\)")
        with phirt.load(bundle, threads=1, adapters=adapters) as without, held:
            without.load_chat(tmp_path / "talk")


def test_a_conversation_without_an_adapter_goes_on_with_one(model, references, tmp_path):
    chat = model.chat()
    ask(chat, "What is this?")
    chat.save(tmp_path / "talk")
    assert model.load_chat(tmp_path / "talk").user_adapter is None
    assert_right(ask(model.load_chat(tmp_path / "talk", adapter="one"), "And then?"), references["one"])


def test_the_generator_takes_an_adapter_for_a_request(model, references):
    messages = [phirt.Message("user", "What is this?")]
    result = model.generator.stream(messages, adapter="two", max_new_tokens=TOKENS).result
    assert result.user_adapter == "two"
    assert_right(result, references["two"])


def test_names_that_are_not_there(model):
    for ask_for in (lambda: model.chat(adapter="three"), lambda: model.chat().use_adapter("three")):
        with pytest.raises(ConfigError, match="no adapter 'three', the model was loaded with: 'one', 'two'"):
            ask_for()
    with pytest.raises(ConfigError, match="there is no adapter 5"):
        model.chat(adapter=5)


@pytest.mark.parametrize(
    ("adapters", "said"),
    [
        (["folder"], "adapters is a list, accepted: a dict"),
        ("folder", "adapters is a str, accepted: a dict"),
        ({5: "folder"}, "adapters names one 5"),
        ({"": "folder"}, "adapters names one ''"),
        ({"a\nb": "folder"}, r"adapters names one 'a\\nb'"),
        ({"mine": 5}, "the adapter 'mine' is a int, accepted: its folder"),
        ({"mine": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_what_is_no_adapter_is_refused(bundle, adapters, said):
    with pytest.raises((ConfigError, AdapterError), match=said):
        phirt.load(bundle, adapters=adapters)


def test_an_adapter_that_finds_no_memory_is_not_called_damaged(bundle, folders, monkeypatch):
    def find_none(*shape, **kind):
        raise MemoryError("no room")

    monkeypatch.setattr("phirt.bundle.peft.np.empty", find_none)
    with pytest.raises(phirt.OutOfMemoryError, match="memory to read the adapter 'one'"):
        phirt.load(bundle, adapters=folders)


def test_a_bundle_that_was_exported_before_says_so(bundle, folders, tmp_path):
    older = shutil.copytree(bundle, tmp_path / "older")
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["graphs"]["decoder_lora"]
    (older / "manifest.json").write_text(json.dumps(manifest | {"name": "old"}))
    with pytest.raises(AdapterError, match=r"the bundle 'old' takes no adapters: .*; export it again"):
        phirt.load(older, adapters=folders)
    result = run("chat", "-m", older, "x", "--adapter", folders["one"])
    assert (result.exit_code, result.stdout) == (1, "") and result.stderr.count("\n") == 1


def test_the_plain_graph_serves_who_brings_no_adapter(bundle, folders, monkeypatch):
    opened = []
    decoder = phirt.generator._open_decoder
    monkeypatch.setattr(
        "phirt.generator._open_decoder", lambda m, graph, c: opened.append(graph) or decoder(m, graph, c)
    )
    phirt.load(bundle, adapters={}).close()
    phirt.load(bundle, adapters=folders).close()
    assert opened == ["decoder", "decoder_lora"]


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_phirt_chat_takes_a_folder(bundle, folders, model, tmp_path):
    talk = ("chat", "-m", bundle, "What is this?", "--max-new-tokens", TOKENS)
    plain, adapted = (
        json.loads(run(*talk, "--json", *more).stdout) for more in ((), ("--adapter", folders["one"]))
    )
    assert "adapter" not in plain and (adapted["route"], adapted["adapter"]) == ("none", "one")
    assert tuple(adapted["ids"]) == ask(model.chat(adapter="one"), "What is this?").token_ids
    assert plain["ids"] != adapted["ids"]

    kept = ("--conversation", tmp_path / "talk")
    assert run(*talk, *kept, "--adapter", folders["one"]).stdout.strip() == adapted["text"].strip()
    without = run(*talk, *kept)
    assert without.exit_code == 1 and "held with the adapter 'one'" in without.stderr
    again = json.loads(run(*talk, *kept, "--adapter", folders["one"], "--json").stdout)
    assert again["usage"]["cached_tokens"] > 0


def test_phirt_chat_refuses_other_folders_in_one_line(bundle, tmp_path):
    for folder, said in (
        (tmp_path / "nowhere", "is no folder"),
        (save_adapter(tmp_path / "dora", 1, use_dora=True), "(DoRA)"),
        (bundle, "holds no adapter_config.json"),
    ):
        result = run("chat", "-m", bundle, "x", "--adapter", folder)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr and result.stderr.count("\n") == 1
