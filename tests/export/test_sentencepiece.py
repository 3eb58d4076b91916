"""Checkpoints whose tokenizer is a file of sentencepiece alone: ids are sentencepiece's own."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers_models import CORPUS, build

import phirt
from phirt.errors import ConfigError
from phirt.prompt.charsmap import Charsmap
from phirt.prompt.tokenizer import Tokenizer
from phirt_export.chat_files import tokenizer_bytes
from phirt_export.exporter import export_bundle
from phirt_export.tokenizer_files.sentencepiece_file import read_model

sentencepiece = pytest.importorskip("sentencepiece")

KEPT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "identity": KEPT,
    "defaults": {},  # NFKC with changes, and no more spaces than needed
    "nfkc": {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": False},
    "no space": {**KEPT, "add_dummy_prefix": False},
    "symbols": {**KEPT, "user_defined_symbols": ["▁▁", "▁▁▁▁", "\n", "7", "<|im_end|>"]},
    "no bytes": {**KEPT, "byte_fallback": False},
}
MODELS = [("unigram", name) for name in SETTINGS] + [("bpe", name) for name in SETTINGS if name != "no bytes"]
SAID = [
    "the",
    "sea",
    " ",
    "  ",
    "     ",
    "\n",
    "\t",
    "é",
    "e\u0301",
    "好",
    "が",
    "か\u3099",
    "ｶﾞ",
    "①",
    "ﬁ",
    "👋🏽",
]
SAID += [
    "\u1112\u1161\u11ab",
    "<0x0A>",
    "<s>",
    "</s>",
    "<unk>",
    "▁",
    "▁the",
    "1777",
    "\r\n",
    "\u00ad",
    "\x00",
    "…",
    "Ａ",
]
TEXTS = st.lists(st.one_of(st.sampled_from([*SAID, *CORPUS[:3]]), st.text(max_size=3)), max_size=8).map(
    "".join
)
FIXED = settings(deadline=None, max_examples=60, derandomize=True)
PLAIN = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def trained(kind: str, **wanted: Any) -> bytes:
    """A model that sentencepiece trains in a moment."""
    out = io.BytesIO()
    sentences = iter([*CORPUS, "１２ ｶﾞ 1777 two  spaces\tand more…"] * 3)
    options = {
        "byte_fallback": True,
        "hard_vocab_limit": False,
        "vocab_size": 400,
        "minloglevel": 2,
        **wanted,
    }
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=sentences, model_writer=out, model_type=kind, num_threads=1, **options)
    return out.getvalue()


def checkpoint(folder: Path, raw: bytes, **config: Any) -> Path:
    (folder / "tokenizer.model").write_bytes(raw)
    (folder / "tokenizer_config.json").write_text(json.dumps({**PLAIN, **config}))
    return folder


def opened(folder: Path) -> Tokenizer:
    """As the runtime opens what the export makes of it."""
    path = folder / "made.json"
    path.write_bytes(tokenizer_bytes(folder))
    return Tokenizer(path, 1000)


class Pair:
    """Sentencepiece's processor and phirt's tokenizer of one model."""

    def __init__(self, folder: Path, raw: bytes, **config: Any) -> None:
        self.theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
        self.folder = checkpoint(folder, raw, **config)
        self.ours = opened(self.folder)
        self.is_unigram = json.loads((folder / "made.json").read_text())["model"]["type"] == "Unigram"


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def pair(request, tmp_path_factory) -> Pair:
    kind, name = request.param
    return Pair(tmp_path_factory.mktemp("spm"), trained(kind, **SETTINGS[name]))


def same_ids(ours: list[int], theirs: list[int]) -> bool:
    """Equal; or, as in runs of one character, the same pieces in another order: sums that are equal differ by
    rounding then, and sentencepiece's have 32 bits, the library's 64.
    """
    return ours == theirs or sorted(ours) == sorted(theirs)


@FIXED
@given(text=TEXTS)
def test_ids(pair, text):
    ours, theirs = pair.ours.encode_content(text, begins=True), pair.theirs.encode(text)
    assert same_ids(ours, theirs) if pair.is_unigram else ours == theirs


@FIXED
@given(text=TEXTS)
def test_what_was_encoded_comes_back(pair, text):
    ids = [token for token in pair.theirs.encode(text) if token != pair.theirs.unk_id()]
    assert pair.ours.decode(ids) == pair.theirs.decode(ids)


@pytest.mark.parametrize(
    ("kind", "config", "parts"),
    [
        ("unigram", {}, ["▁the", "</s>", "▁the"]),
        ("bpe", {}, ["▁the", "</s>", "▁the"]),
        ("unigram", {"legacy": False}, ["▁the", "</s>", "the"]),
        ("bpe", {"tokenizer_class": "LlamaTokenizer"}, ["▁the", "</s>", "the"]),
        ("bpe", {"tokenizer_class": "LlamaTokenizer", "legacy": True}, ["▁the", "</s>", "▁the"]),
        ("unigram", {"tokenizer_class": "LlamaTokenizer"}, ["▁the", "</s>", "▁the"]),
        ("unigram", {"add_prefix_space": False}, ["the", "</s>", "the"]),
    ],
)
def test_where_a_space_is_written(tmp_path, kind, config, parts):
    pair = Pair(tmp_path, trained(kind, **KEPT, user_defined_symbols=["[MARK]"]), **config)
    ids = pair.ours.encode_content("the", begins=True), [2], pair.ours.encode_content("the")
    assert list(itertools.chain(*ids)) == [token for part in parts for token in pieces_of(pair, part)]


def pieces_of(pair: Pair, text: str) -> list[int]:
    """Ids of a text that already has its spaces."""
    if text == "</s>":
        return [2]
    whole = pair.theirs.encode(text.replace("▁", " ").strip())
    return whole if text.startswith("▁") else pair.theirs.encode("\n" + text)[2:]


def test_text_forges_no_token(tmp_path):
    """Neither a control token, nor one of a user's, nor a byte, nor the unknown one."""
    pair = Pair(tmp_path, trained("unigram", **KEPT, user_defined_symbols=["[MARK]"]))
    ids = pair.ours.encode_content("<s>[MARK]<0x0A><unk>")
    assert {0, 1, 2, pair.ours.id_of("[MARK]"), pair.ours.id_of("<0x0A>")}.isdisjoint(ids)
    assert pair.ours.split_control("a[MARK]") == ["a", pair.theirs.piece_to_id("[MARK]")]
    assert pair.ours.id_of("<0x0A>") == pair.theirs.piece_to_id("<0x0A>")
    assert pair.ours.name_of(pair.theirs.piece_to_id("<0x0A>")) == "<0x0A>"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_names_of_the_configuration_replace_those_of_the_file(tmp_path, kind):
    entries = {"2": {"content": "<|end|>", "special": True}, "500": {"content": "<|more|>", "special": True}}
    raw = trained(kind, **KEPT)
    pair = Pair(tmp_path, raw, added_tokens_decoder=entries, eos_token="<|end|>")
    assert (pair.ours.id_of("<|end|>"), pair.ours.id_of("</s>")) == (2, None)
    assert pair.ours.id_of("<|more|>") == 500
    library = tokenizers.Tokenizer.from_buffer(tokenizer_bytes(pair.folder))
    assert library.token_to_id("<|end|>") == 2


def test_a_checkpoint_with_a_unigram_exports_and_answers(tmp_path):
    raw = trained("unigram", **KEPT, user_defined_symbols=["<|im_start|>", "<|im_end|>"])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    folder = build(tmp_path / "checkpoint", vocab_size=448, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.json").unlink()
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    checkpoint(folder, raw, chat_template=template, legacy=False)
    remarks: list[str] = []
    bundle = export_bundle(folder, tmp_path / "bundle", bits=32, remarks=remarks.append)
    assert "the tokenizer is made of tokenizer.model" in remarks
    with phirt.load(bundle) as model:
        result = model.chat().send("the sea", max_new_tokens=8, temperature=0.0).result
    start, end, line = (theirs.piece_to_id(name) for name in ("<|im_start|>", "<|im_end|>", "<0x0A>"))
    user, assistant = ([*theirs.encode("\n" + role)[2:], line] for role in ("user", "assistant"))
    said = theirs.encode("\nthe sea")[2:]
    expected = [start, *user, *said, end, line, start, *assistant]
    assert list(result.prompt_token_ids) == expected
    assert result.text == theirs.decode(list(result.token_ids)) or "\ufffd" in theirs.decode(
        list(result.token_ids)
    )


@pytest.mark.parametrize("rule", ["nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"])
def test_characters_are_mapped_by_the_longest_match(rule, tmp_path):
    raw = trained("bpe", normalization_rule_name=rule, add_dummy_prefix=False, remove_extra_whitespaces=False)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    ours = Charsmap(read_model(checkpoint(tmp_path, raw) / "tokenizer.model").charsmap)

    @FIXED
    @given(text=st.one_of(TEXTS, st.text()))
    def check(text):
        assert ours.normalize(text).replace(" ", "▁") == theirs.normalize(text)

    check()


@pytest.mark.parametrize("table", [b"", b"\x04", b"\xff\xff\xff\xff1234", b"\x03\0\0\0abcd"])
def test_a_table_that_is_cut_off_is_refused(table):
    with pytest.raises(ValueError, match="cut off"):
        Charsmap(table)


@FIXED
@given(
    st.binary(min_size=4, max_size=64).map(lambda raw: raw[: len(raw) // 4 * 4]), st.binary(max_size=8), TEXTS
)
def test_a_hostile_table_breaks_nothing(trie, replacements, text):
    assert isinstance(Charsmap(len(trie).to_bytes(4, "little") + trie + replacements).normalize(text), str)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("word", {}),
        ("char", {}),
        ("bpe", {"treat_whitespace_as_suffix": True}),
        ("unigram", {"user_defined_symbols": ["\n"]}),  # which the default rule maps to a space elsewhere
    ],
)
def test_what_is_not_converted_is_one_line(tmp_path, kind, wanted):
    checkpoint(tmp_path, trained(kind, **wanted))
    with pytest.raises(ConfigError, match="transformers makes a tokenizer") as caught:
        tokenizer_bytes(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_json_with_a_unigram_is_read_as_the_library_reads_it(tmp_path):
    """As llm-jp writes it: patterns in place of a Metaspace, added tokens inside the list."""
    document = json.loads(tokenizer_bytes(checkpoint(tmp_path, trained("unigram", **KEPT))))
    first, space = {"Regex": "(?<!\\n)^"}, {"Regex": " "}
    steps = [{"type": "Replace", "pattern": pattern, "content": "▁"} for pattern in (first, space)]
    document["normalizer"], document["pre_tokenizer"] = {"type": "Sequence", "normalizers": steps}, None
    for index, entry in enumerate(document["model"]["vocab"]):
        entry[1] = entry[1] if index > 2 and not entry[0].startswith("<0x") else -80.0
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    library, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer(path, 1000)

    @FIXED
    @given(text=TEXTS)
    def check(text):
        for name in ("<s>", "</s>", "<unk>", "<0x0A>"):
            text = text.replace(name, "")
        assert ours.encode_content(text) == library.encode(text, add_special_tokens=False).ids

    check()


def test_a_unigram_without_an_unknown_token_leaves_out_what_it_lacks(tmp_path):
    document = json.loads(
        tokenizer_bytes(checkpoint(tmp_path, trained("unigram", **KEPT, byte_fallback=False)))
    )
    document["model"]["unk_id"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    ours = Tokenizer(path, 1000)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert ours.encode_content("the好sea") == [token for token in theirs.encode("the好sea") if token]
