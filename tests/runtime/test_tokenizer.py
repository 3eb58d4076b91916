"""Control tokens stay out of content; streams never break a character; stop strings are cut exactly."""

from __future__ import annotations

import itertools
import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import CONTROL

from phirt.errors import BundleError
from phirt.prompt.stop_strings import StopStrings
from phirt.prompt.tokenizer import StreamDecoder, Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TRICKY = st.lists(
    st.sampled_from([*CONTROL, "<|", "|>", "end", " ", "\n", "é", "👋🏽", "<|image_1|>"]), max_size=12
).map("".join)

PANICKING = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}  # the library does, which is no Exception


@pytest.fixture(scope="session")
def tokenizer(bundle) -> Tokenizer:
    return Tokenizer(bundle / "tokenizer.json", 512)


@pytest.fixture(scope="session")
def original(bundle) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))


def test_template_text_yields_control_tokens(tokenizer, original):
    assert tokenizer.split_control("<|user|>hello<|end|><|assistant|>") == [5, "hello", 4, 3]
    assert original.encode("<|user|>hello<|end|><|assistant|>").ids[0] == 5
    assert tokenizer.split_control("plain") == ["plain"]
    assert tokenizer.split_control("") == []
    assert tokenizer.id_of("<|end|>") == 4


@given(text=st.one_of(TEXT, TRICKY))
def test_content_never_yields_a_control_token_and_comes_back_whole(tokenizer, text):
    ids = tokenizer.encode_content(text)
    assert not set(ids) & set(range(len(CONTROL)))
    assert tokenizer.decode(ids) == text


@given(text=TEXT)
def test_content_without_control_names_is_encoded_as_usual(tokenizer, original, text):
    if not any(name in text for name in CONTROL):
        assert tokenizer.encode_content(text) == original.encode(text).ids


def test_lone_surrogates_become_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode_content("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode_content("\ud83d\udcf2")) == "\U0001f4f2"


@given(text=st.one_of(TEXT, TRICKY))
def test_streaming_equals_decoding_at_once_and_never_shows_half_a_character(tokenizer, text):
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.feed(token) for token in tokenizer.encode_content(text)]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_multi_byte_character_appears_with_its_last_byte(tokenizer, original):
    names = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\U0001f4f2")[0][0]
    ids = [original.token_to_id(name) for name in names]
    assert [tokenizer.token_bytes(token) for token in ids] == [b"\xf0", b"\x9f", b"\x93", b"\xb2"]
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(token) for token in ids] == ["", "", "", "\U0001f4f2"]


def test_bytes_that_are_no_character_become_one_replacement(tokenizer, original):
    broken = original.token_to_id("ð")
    plain = tokenizer.encode_content("a")[0]
    assert tokenizer.decode([broken, plain]) == "\ufffda"
    assert tokenizer.decode([plain, broken]) == "a"


@given(ids=st.lists(st.integers(12, 511), max_size=40))
def test_any_ids_stream_as_the_replacing_decoder_says(tokenizer, ids):
    raw = b"".join(map(tokenizer.token_bytes, ids))
    whole = raw.decode("utf-8", "replace")
    text = tokenizer.decode(ids)
    assert whole.startswith(text)
    assert whole[len(text) :] in ("", "\ufffd")


def test_leading_spaces_stay(tokenizer):
    ids = tokenizer.encode_content(" the  fox")
    assert tokenizer.decode(ids) == " the  fox"


def test_special_tokens_are_hidden_unless_named(bundle, tokenizer):
    assert tokenizer.decode([9, 4]) == ""
    assert Tokenizer(bundle / "tokenizer.json", 512, ["<|tool_call|>"]).decode([9, 4]) == "<|tool_call|>"


def damaged(bundle, tmp_path, edit):
    document = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    edit(document)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), "utf-8")
    return path


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda d: d.pop("model"), "is not a tokenizer.json"),
        (lambda d: d["model"].update(type="WordPiece"), "accepted are BPE models"),
        (lambda d: d["model"].update(continuing_subword_prefix="Ġ"), "accepted are BPE models"),
        (lambda d: d["model"].update(vocab=None), "is not a usable tokenizer"),
        (lambda d: d["model"].update(merges=["a b c"]), "is not a usable tokenizer"),
        (lambda d: d.update(normalizer=PANICKING), "is not a usable tokenizer"),
        (lambda d: d.update(decoder=None), "ByteLevel decoder"),
        (lambda d: d["model"].update(merges=[["nope", "never"]]), "is not a usable tokenizer"),
        (lambda d: d["added_tokens"].append({"content": 5}), "is not a usable tokenizer"),
    ],
)  # fmt: skip
def test_a_damaged_tokenizer_is_a_bundle_error(bundle, tmp_path, edit, expected):
    with pytest.raises(BundleError, match=expected):
        Tokenizer(damaged(bundle, tmp_path, edit), 512)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d["added_tokens"][4].update(content="\ud800"),
        lambda d: d["added_tokens"][4].update(content="<|end|>\udfff"),
        lambda d: d["model"]["vocab"].update({"\udbff\ud800": 300}),
        lambda d: d["model"]["merges"].append(["\udc00", "a"]),
        lambda d: d.update(pre_tokenizer={"type": "Split", "pattern": {"String": "\ud800"}}),
        lambda d: d.update({"\ud800": 1}),
    ],
)
def test_a_lone_surrogate_in_any_name_is_one_line(bundle, tmp_path, edit):
    """attack/05: a control token that no text and no terminal can hold."""
    document = json.loads((bundle / "tokenizer.json").read_text())
    edit(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="a name with a lone surrogate, which is no character"):
        Tokenizer(tmp_path / "tokenizer.json", 512)


def test_pairs_of_surrogate_escapes_are_characters(bundle, tmp_path):
    document = json.loads((bundle / "tokenizer.json").read_text())
    document["added_tokens"][4]["content"] = "<|👋|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=True))
    assert Tokenizer(tmp_path / "tokenizer.json", 512).name_of(4) == "<|👋|>"


def test_a_tokenizer_beyond_the_vocabulary_is_refused(bundle):
    with pytest.raises(BundleError, match="the decoder's vocabulary ends at 99"):
        Tokenizer(bundle / "tokenizer.json", 100)


def test_ignoring_merges_does_not_bring_control_tokens_back(bundle, tmp_path):
    path = damaged(bundle, tmp_path, lambda d: d["model"].update(ignore_merges=True))
    tokenizer = Tokenizer(path, 512)
    assert not set(tokenizer.encode_content("<|end|>")) & set(range(12))


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: model.update(merges=["#version: 0.2", *map(" ".join, model["merges"])]),
        lambda model: model.update(ignore_merges=True),
        lambda model: model.update(byte_fallback=True, fuse_unk=True, unk_token="a"),
        lambda model: model.update(continuing_subword_prefix="", end_of_word_suffix=""),
    ],
    ids=["merges as strings", "whole words first", "unknown", "no affixes"],
)
def test_every_setting_of_the_file_reaches_the_encoder(bundle, tmp_path, edit):
    path = damaged(bundle, tmp_path, lambda document: edit(document["model"]))
    text = "The lazy dog's 12 naïve words, written thrice: 你好"
    expected = tokenizers.Tokenizer.from_file(str(path)).encode(text).ids
    assert Tokenizer(path, 512).encode_content(text) == expected


def test_characters_without_a_token_are_left_out(bundle, tmp_path):
    def edit(document):
        document["model"].update(unk_token="<|end|>")  # which content never yields
        document["model"]["vocab"].pop("!")

    path = damaged(bundle, tmp_path, edit)
    assert Tokenizer(path, 512).decode(Tokenizer(path, 512).encode_content("a!b")) == "ab"


def test_tokens_that_swallow_whitespace_are_known(bundle, tmp_path):
    path = damaged(bundle, tmp_path, lambda d: d["added_tokens"][5].update(rstrip=True, lstrip=True))
    tokenizer = Tokenizer(path, 512)
    assert tokenizer.trims_after(5)
    assert tokenizer.trims_before(5)
    assert not tokenizer.trims_after(4)
    assert not tokenizer.trims_after(300)


def stream(pieces, stops):
    strings = StopStrings(stops)
    shown = [strings.feed(piece) for piece in pieces]
    return "".join(shown) + ("" if strings.hit else strings.finish()), strings.hit


def expected_cut(text, stops):
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@given(
    text=st.text("ab ", max_size=30),
    stops=st.lists(st.text("ab ", min_size=1, max_size=5), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_strings_do_not_depend_on_the_pieces(text, stops, cuts):
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert stream(pieces, stops) == expected_cut(text, stops)


def test_stop_strings_hold_back_only_what_could_become_one():
    strings = StopStrings(["STOP"])
    assert [strings.feed(piece) for piece in ("go S", "T", "x", "ST", "OP more", "more")] == [
        "go ",
        "",
        "STx",
        "",
        "",
        "",
    ]
    assert strings.hit
