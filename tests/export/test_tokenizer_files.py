"""Case 25: tokenizers in other files than tokenizer.json give the ids of transformers' fast tokenizers."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers_models import CORPUS, NAMES, build, byte_level, edit

import phirt
from phirt.errors import ConfigError
from phirt.prompt.tokenizer import Tokenizer
from phirt_export.chat_files import special_tokens, tokenizer_bytes
from phirt_export.exporter import export_bundle

SAID = ["the sea", "  ", "\n", "é好", "👋", "It's 1234", "▁", "<s>", "</s>", "<|im_end|>", *CORPUS[:3]]
TEXTS = st.lists(st.sampled_from(SAID), max_size=5).map(" ".join)
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
FIXED = settings(deadline=None, max_examples=60)


def library(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_buffer(tokenizer_bytes(folder))


def same_ids(folder: Path, other: Any, text: str) -> None:
    """By the library, and by the runtime for text without special tokens."""
    ids = other(text, add_special_tokens=False)["input_ids"]
    assert library(folder).encode(text, add_special_tokens=False).ids == ids


class TestVocabularyAndMerges:
    @pytest.fixture(scope="class", params=["Qwen2Tokenizer", "GPT2Tokenizer"])
    @classmethod
    def folder(cls, request, tmp_path_factory):
        folder = tmp_path_factory.mktemp("merges")
        byte_level().model.save(str(folder))
        added = {397: "<|endoftext|>", 398: "<|im_start|>", 399: "<|im_end|>"}
        config = {
            "tokenizer_class": request.param,
            **NAMES,
            "added_tokens_decoder": {str(i): {"content": name, **PLAIN} for i, name in added.items()},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text(
            json.dumps({"model_type": "qwen2" if "Qwen" in request.param else "llama"})
        )
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def theirs(cls, folder):
        return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)

    @FIXED
    @given(text=TEXTS)
    def test_ids(self, folder, theirs, text):
        same_ids(folder, theirs, text)

    def test_names_alone_come_behind_all_others(self, tmp_path):
        byte_level().model.save(str(tmp_path))
        config = {"tokenizer_class": "Qwen2Tokenizer", **NAMES}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
        theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
        same_ids(tmp_path, theirs, "the sea<|im_end|>is<|endoftext|>")

    def test_a_checkpoint_exports_and_answers(self, tmp_path):
        folder = build(tmp_path / "checkpoint")
        whole = (folder / "tokenizer.json").read_bytes()
        (folder / "tokenizer.json").unlink()
        byte_level().model.save(str(folder))
        added = {397 + i: name for i, name in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))}
        entries = {str(i): {"content": name, **PLAIN} for i, name in added.items()}
        edit(folder / "tokenizer_config.json", added_tokens_decoder=entries)
        remarks: list[str] = []
        bundle = export_bundle(folder, tmp_path / "bundle", bits=32, remarks=remarks.append)
        assert "the tokenizer is made of vocab.json and merges.txt" in remarks
        with phirt.load(bundle) as model:
            ids = model.chat().send("the sea", max_new_tokens=2).result.prompt_token_ids
        prompt = "<|im_start|>user\nthe sea<|im_end|>\n<|im_start|>assistant\n"
        assert list(ids) == tokenizers.Tokenizer.from_buffer(whole).encode(prompt).ids


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes | int | float) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def spm_pieces() -> list[tuple[str, int]]:
    """Pieces in the order of scores, as training by sentencepiece numbers them."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(vocab_size=120, show_progress=False))
    document = json.loads(trained.to_str())["model"]
    merged = ["".join(pair) for pair in document["merges"]]
    characters = [name for name in document["vocab"] if len(name) == 1]
    specials = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    return [*specials, *((name, 1) for name in [*merged, *characters]), ("<|im_end|>", 4)]


def spm_model(kind: int = 2) -> bytes:
    pieces = b""
    for rank, (name, piece_kind) in enumerate(spm_pieces()):
        pieces += field(1, field(1, name.encode()) + field(2, -float(rank)) + field(3, piece_kind))
    return pieces + field(2, field(3, kind)) + field(3, field(1, b"identity") + field(4, 0))


class TestSentencepiece:
    @pytest.fixture(scope="class", params=[True, False, None])
    @classmethod
    def folder(cls, request, tmp_path_factory):
        folder = tmp_path_factory.mktemp("spm")
        (folder / "tokenizer.model").write_bytes(spm_model())
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        if request.param is not None:
            config["legacy"] = request.param
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def theirs(cls, folder):
        """transformers' own class over the same pieces: reading the file itself takes sentencepiece."""
        llama = pytest.importorskip("transformers").LlamaTokenizer
        from transformers.tokenization_utils_base import generate_merges

        vocabulary = {name: index for index, (name, _) in enumerate(spm_pieces())}
        legacy = json.loads((folder / "tokenizer_config.json").read_text()).get("legacy", False)
        made = llama(vocab=vocabulary, merges=generate_merges(vocabulary), legacy=legacy)
        made.add_tokens([tokenizers.AddedToken("<|im_end|>", normalized=False, special=False)])
        return made

    @FIXED
    @given(text=TEXTS)
    def test_ids(self, folder, theirs, text):
        same_ids(folder, theirs, text)

    @FIXED
    @given(text=TEXTS)
    def test_the_runtime_cuts_a_prompt_like_the_library(self, folder, tmp_path_factory, text):
        path = tmp_path_factory.mktemp("t") / "tokenizer.json"
        path.write_bytes(tokenizer_bytes(folder))
        for name in ("<s>", "</s>", "<|im_end|>", "<unk>"):
            text = text.replace(name, "")
        ids = Tokenizer(path, 1000).encode_content(text, begins=True)
        assert ids == library(folder).encode(text, add_special_tokens=False).ids

    def test_names_of_the_class(self, folder):
        (folder / "tokenizer_config.json").read_text()
        assert special_tokens(folder) == LLAMA

    @pytest.mark.parametrize(
        "raw", [b"", b"\xff" * 12, spm_model()[:-1000], spm_model(3), b"\x0a\x7f"], ids=range(5)
    )
    def test_what_is_no_such_model_is_refused(self, tmp_path, raw):
        (tmp_path / "tokenizer.model").write_bytes(raw)
        with pytest.raises(ConfigError, match=r"tokenizer\.model is no") as caught:
            tokenizer_bytes(tmp_path)
        assert "\n" not in str(caught.value)


PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tekken(**changes: Any) -> dict[str, Any]:
    words = [bytes([byte]) for byte in range(256)]
    words += [b" t", b"he", b" the", b"se", b"sea", b" sea", "é".encode(), b"ing"]
    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    ranked = enumerate(words)
    return {
        "config": {"pattern": PATTERN, "default_vocab_size": 270, "default_num_special_tokens": 10},
        "vocab": [{"rank": i, "token_bytes": base64.b64encode(word).decode()} for i, word in ranked],
        "special_tokens": [{"rank": i, "token_str": name} for i, name in enumerate(specials)],
        **changes,
    }


class TestTekken:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("tekken")
        (folder / "tekken.json").write_text(json.dumps(tekken()))
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def theirs(cls, folder):
        tokenizer = pytest.importorskip("transformers.integrations.mistral.tokenizer")
        return tokenizer.MistralConverter(str(folder / "tekken.json")).converted()

    @FIXED
    @given(text=st.one_of(TEXTS, st.text(max_size=20)))
    def test_ids(self, folder, theirs, text):
        text = f"<s>[INST]{text}[/INST]"
        assert library(folder).encode(text).ids == theirs.encode(text).ids

    @pytest.mark.parametrize(
        ("version", "expected"),
        [
            ("v3", "<s>[INST]the sea[/INST]is</s>[INST]be brief\n\nold[/INST]"),
            ("v7", "<s>[SYSTEM_PROMPT]be brief[/SYSTEM_PROMPT][INST]the sea[/INST]is</s>[INST]old[/INST]"),
        ],
    )
    def test_alone_it_brings_the_template_of_its_version(self, tmp_path, version, expected):
        """As mistral-common writes conversations; Devstral and Magistral come with no other template."""
        folder = build(tmp_path / "checkpoint", "Mistral", bos_token_id=1, eos_token_id=2)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        made = tekken()
        made["config"] |= {"version": version, "default_vocab_size": 287, "default_num_special_tokens": 24}
        del made["special_tokens"]
        (folder / "tekken.json").write_text(json.dumps(made))
        remarks: list[str] = []
        bundle = export_bundle(folder, tmp_path / "bundle", bits=32, remarks=remarks.append)
        assert "there is no chat template: it is the one of tekken.json's version, without tools" in remarks
        said = phirt.Message("user", "the sea"), phirt.Message("assistant", "is")
        with phirt.load(bundle) as model:
            chat = model.chat(system="be brief")
            chat._messages = said
            ids = chat.send("old", max_new_tokens=1).result.prompt_token_ids
        assert list(ids) == library(folder).encode(expected).ids

    @pytest.mark.parametrize("version", ["v3", "v7"])
    @FIXED
    @given(text=st.one_of(TEXTS, st.text(max_size=20)))
    def test_the_first_files_do_not_name_their_special_tokens(self, tmp_path_factory, version, text):
        """As of Mistral Nemo and Pixtral: the names are those of the version."""
        tiktoken, made = pytest.importorskip("tiktoken"), tekken()
        made["config"] |= {"version": version, "default_vocab_size": 287, "default_num_special_tokens": 24}
        del made["special_tokens"]
        folder = tmp_path_factory.mktemp("old")
        (folder / "tekken.json").write_text(json.dumps(made))
        ranks = {base64.b64decode(word["token_bytes"]): word["rank"] for word in made["vocab"][:263]}
        theirs = tiktoken.Encoding("t", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        path = folder / "tokenizer.json"
        path.write_bytes(tokenizer_bytes(folder))
        ours = Tokenizer(path, 287)
        assert ours.encode_content(text) == [24 + i for i in theirs.encode(text, disallowed_special=())]
        names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[SYSTEM_PROMPT]", "<SPECIAL_20>"]
        assert [ours.id_of(name) for name in names] == [0, 1, 2, 3, 4, 11, 17, 20]

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"special_tokens": None}, "'version' is missing"),
            (
                {"special_tokens": None, "config": {"version": "v11", "pattern": "x"}},
                "does not name its special",
            ),
            ({"special_tokens": [{"rank": 3, "token_str": "x"}]}, "ranks"),
            ({"vocab": [{"token_bytes": "?"}]}, "base64"),
            ({"config": {}}, "pattern"),
        ],
    )
    def test_damage_is_named(self, tmp_path, changes, named):
        (tmp_path / "tekken.json").write_text(json.dumps(tekken(**changes)))
        with pytest.raises(ConfigError, match=named):
            tokenizer_bytes(tmp_path)


def test_without_any_tokenizer_the_accepted_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.json, tokenizer\.model, tekken\.json, or vocab\.json"):
        tokenizer_bytes(tmp_path)
