"""GGUF files of every architecture that is read: the same model as its checkpoint in safetensors, and blocks
kept bit for bit.
"""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import small_models
import tokenizers
from checkpoints import tokenizer as tokenizer_of_checkpoints
from checkpoints.write import write_checkpoint
from gguf import GGMLQuantizationType as Kind
from gguf_models import write_gguf
from tokenizers import models, normalizers, trainers

from phirt.bundle.files import load_manifest
from phirt.errors import ConfigError
from phirt.prompt.tokenizer import Tokenizer
from phirt_export.chat_files import TOKENIZER_NAME, read_template
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle
from phirt_export.gguf_files.pre_tokenizers import PRE_TOKENIZERS
from phirt_export.layer_divergence import layer_divergences
from phirt_export.model_weights import load_model
from phirt_quant import samples
from phirt_quant.blockwise import dequantize

FAMILIES = ("phi-4-mini", "phi-3-mini", "phi-4", "llama", "llama-biased", "mistral", "qwen2", "qwen3")
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 330, 60)]
TEXT = (
    "Don't PANIC: 12345 naïve cafés, 3.14 €, 日本語のテキスト!?\r\n\n\tdef f(x):  return x**2   \n"
    "I'LL we've O'Neil's  ...   مرحبا Привет HTTPServer camelCase 🙂👍🏽 e\u0301 <|user|> <|end|>\u00a0x"
)


@pytest.fixture
def checkpoint(tmp_path, ranks):
    """Makes random checkpoints by family."""

    def make(family):
        # Files of the architecture llama have no window; nothing published needs one.
        changes = {"sliding_window": None} if family == "mistral" else None
        return write_checkpoint(tmp_path / family, family, ranks, changes=changes)

    return make


def logits(bundle, ids=IDS):
    decoder = Checkpoint(bundle[0]).config.decoder
    return small_models.DecoderRunner(small_models.session(bundle[1] / "decoder.onnx"), decoder).run(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_checkpoint_in_safetensors(tmp_path, checkpoint, family):
    folder = checkpoint(family)
    file = write_gguf(folder, tmp_path / "model.gguf")
    ours, theirs = Checkpoint(file), Checkpoint(folder)
    assert ours.shapes == theirs.shapes
    for name in ours.shapes:
        np.testing.assert_array_equal(ours.tensor(name), theirs.tensor(name), err_msg=name)
        np.testing.assert_array_equal(ours.rows(name, 3, 9), theirs.rows(name, 3, 9), err_msg=name)
    assert ours.config.decoder.sliding_window == theirs.config.decoder.sliding_window
    assert ours.config.decoder.rope.context == theirs.config.decoder.rope.context
    bundles = [
        (path, export_bundle(path, tmp_path / f"{n}", bits=32)) for n, path in enumerate((file, folder))
    ]
    np.testing.assert_allclose(logits(bundles[0]), logits(bundles[1]), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_documents_are_those_of_the_checkpoint(tmp_path, checkpoint, family):
    folder = checkpoint(family)
    opened = Checkpoint(write_gguf(folder, tmp_path / "model.gguf"))
    assert read_template(opened.folder) == read_template(folder)
    theirs = Checkpoint(folder).config.tokens
    assert set(opened.config.tokens.eos) >= set(theirs.eos)
    assert opened.config.tokens.bos == theirs.bos
    mine, own = (Tokenizer(place / TOKENIZER_NAME, 400) for place in (opened.folder, folder))
    assert mine.encode_content(TEXT) == own.encode_content(TEXT)
    assert mine.split_control(TEXT) == own.split_control(TEXT)


def test_white_space_behind_phis_turn_tokens_vanishes_as_in_its_own_tokenizer(tmp_path, checkpoint):
    folder = checkpoint("phi-4-mini")
    opened = Checkpoint(write_gguf(folder, tmp_path / "model.gguf"))
    mine, own = (Tokenizer(place / TOKENIZER_NAME, 400) for place in (opened.folder, folder))
    names = ("<|user|>", "<|end|>", "<|tool_call|>", "<|endoftext|>", "<|assistant|>")
    assert [mine.trims_after(mine.id_of(n)) for n in names] == [own.trims_after(own.id_of(n)) for n in names]


def mixed(name):
    """Every kept type in one file; query, key and value differ."""
    kinds = {"attn_q": Kind.Q4_0, "attn_k": Kind.Q4_1, "attn_v": Kind.Q8_0, "ffn_gate": Kind.Q4_1}
    return kinds.get(name.split(".")[-2], Kind.Q8_0 if "token" in name or "output" in name else Kind.Q4_0)


@pytest.mark.parametrize(
    "kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, mixed], ids=["q4_0", "q4_1", "q8_0", "mixed"]
)
@pytest.mark.parametrize("family", ["llama", "phi-3-mini"])
def test_blocks_are_kept_bit_for_bit(tmp_path, checkpoint, family, kind):
    chosen = kind if callable(kind) else lambda name: kind
    file = write_gguf(checkpoint(family), tmp_path / "model.gguf", chosen)
    opened = Checkpoint(file)
    matrices = [name for name, shape in opened.shapes.items() if len(shape) == 2]
    assert set(opened.kept) == set(matrices)
    for name in matrices:
        rows = opened.shape(name)[0]
        kept = np.concatenate([dequantize(opened.kept_rows(name, n, n + 1)) for n in range(rows)])
        np.testing.assert_array_equal(kept, opened.tensor(name), err_msg=name)
        assert np.isin(opened.kept[name].bits, (4, 8))
    remarks, errors = [], []
    kept = export_bundle(file, tmp_path / "kept", remarks=remarks.append, errors=errors.extend)
    assert remarks[0].startswith("matrices kept bit for bit: ")
    assert "by phirt" not in remarks[0]
    assert all(part.relative == 0 for part in errors)
    entry = json.loads((kept / "manifest.json").read_text())["quantization"]
    assert entry["method"] == "kept"
    assert sum(entry["kept"].values()) == len(matrices)
    floats = export_bundle(file, tmp_path / "floats", bits=32)
    wanted = logits((file, floats))
    # Codes of 4 bits among those of 8 lie far from the kernel's zero, which costs 16 times the precision.
    error = (5e-3 if kind is mixed else 1e-3) * np.abs(wanted).max()
    np.testing.assert_allclose(logits((file, kept)), wanted, atol=error)


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q8_0], ids=["q4_1", "q8_0"])
def test_kept_layers_cost_nothing(tmp_path, checkpoint, kind):
    """Also a table that scores as well as embeds, whose scales in float16 have the name of one use alone."""
    file = write_gguf(checkpoint("phi-4-mini"), tmp_path / "model.gguf", lambda name: kind)
    opened = Checkpoint(file)
    assert opened.config.decoder.tied
    manifest = load_manifest(export_bundle(file, tmp_path / "kept"))
    costs = dict(layer_divergences(load_model(opened), manifest, [5, 6, 7, 8], lambda *_: None))
    assert len(costs) > opened.config.decoder.num_layers
    assert max(costs.values()) < 1e-6


def test_values_and_codes_are_those_of_the_file(tmp_path, checkpoint):
    """Against the library's reader and dequantization, and codes taken apart by hand."""
    file = write_gguf(checkpoint("qwen2"), tmp_path / "model.gguf", lambda name: Kind.Q4_1)
    opened = Checkpoint(file)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}["blk.1.ffn_down.weight"]
    name = "model.layers.1.mlp.down_proj.base_layer.weight"
    np.testing.assert_array_equal(opened.tensor(name), gguf.dequantize(stored.data, Kind.Q4_1))
    raw = bytes(stored.data[5][20:40])  # the second block of row 5
    low, high = [byte & 15 for byte in raw[4:]], [byte >> 4 for byte in raw[4:]]
    elements = low + high
    packed = [elements[2 * i] | elements[2 * i + 1] << 4 for i in range(16)]
    kept = opened.kept_rows(name, 5, 6)
    assert kept.codes[0, 1].tolist() == packed
    assert kept.scales[0, 1].tobytes() + kept.minimums[0, 1].tobytes() == raw[:4]
    data = (export_bundle(file, tmp_path / "bundle") / "decoder.data").read_bytes()
    rows = opened.shape(name)[0]
    whole = opened.kept_rows(name, 0, rows)
    assert all(part.tobytes() in data for part in (whole.codes, whole.scales, whole.minimums))


def test_k_blocks_in_4_bits_are_kept_and_finer_ones_have_8(tmp_path, ranks):
    """As a Q4_K_M file has them: values and half of the down projections in Q6_K."""

    def kind(name):
        is_fine = "attn_v" in name or name == "blk.0.ffn_down.weight"
        return Kind.Q6_K if is_fine else Kind.Q4_K

    sizes = {"hidden_size": 256, "intermediate_size": 256}
    folder = write_checkpoint(tmp_path / "llama", "llama", ranks, changes=sizes)
    file = write_gguf(folder, tmp_path / "model.gguf", kind)
    opened = Checkpoint(file)
    own = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}
    name = "model.layers.1.mlp.down_proj.base_layer.weight"
    np.testing.assert_array_equal(opened.tensor(name), own["blk.1.ffn_down.weight"])
    np.testing.assert_array_equal(dequantize(opened.kept_rows(name, 0, 256)), own["blk.1.ffn_down.weight"])
    remarks, errors = [], []
    kept = export_bundle(file, tmp_path / "kept", remarks=remarks.append, errors=errors.extend)
    assert remarks == [
        "matrices kept bit for bit: 6 of Q4_K; "
        "quantized by phirt: 2 of Q4_K and Q6_K in 8 bits, 1 of Q6_K in 8 bits"
    ]
    assert all(part.relative < 0.006 for part in errors)
    floats = export_bundle(file, tmp_path / "floats", bits=32)
    wanted = logits((file, floats))
    assert np.median(np.abs(logits((file, kept)) - wanted)) < 1e-2 * np.abs(wanted).max()
    whole = write_gguf(folder, tmp_path / "whole.gguf", lambda name: Kind.Q4_K)
    pair = [export_bundle(whole, tmp_path / f"whole-{bits}", bits=bits) for bits in (None, 32)]
    wanted = logits((whole, pair[1]))
    np.testing.assert_allclose(logits((whole, pair[0])), wanted, atol=1e-3 * np.abs(wanted).max())


def test_other_blocks_are_quantized_anew_and_that_is_said(tmp_path, checkpoint):
    def kind(name):
        return Kind.F16 if "ffn_down" in name else Kind.Q4_0

    file = write_gguf(checkpoint("phi-3-mini"), tmp_path / "model.gguf", kind)
    remarks = []
    bundle = export_bundle(file, tmp_path / "bundle", remarks=remarks.append)
    assert remarks == ["matrices kept bit for bit: 8 of Q4_0; quantized by phirt: 2 of F16"]
    entry = json.loads((bundle / "manifest.json").read_text())["quantization"]
    assert entry["kept"] == {"Q4_0": 8}
    assert entry["quantized_by_phirt"] == {"F16": 2}
    assert entry["method"] == "mse"


def test_what_is_asked_for_by_bits_is_quantized_anew(tmp_path, checkpoint):
    file = write_gguf(checkpoint("phi-3-mini"), tmp_path / "model.gguf", lambda name: Kind.Q8_0)
    remarks = []
    bundle = export_bundle(file, tmp_path / "bundle", bits=4, remarks=remarks.append)
    assert remarks == ["quantized by phirt: 10 of Q8_0"]
    assert "kept" not in json.loads((bundle / "manifest.json").read_text())["quantization"]


def test_nothing_is_said_about_a_file_of_floats(tmp_path, checkpoint):
    file = write_gguf(checkpoint("phi-3-mini"), tmp_path / "model.gguf", lambda name: Kind.BF16)
    remarks = []
    export_bundle(file, tmp_path / "bundle", remarks=remarks.append)
    assert not any("matrices" in line or "quantized" in line for line in remarks)


def test_messages_name_the_file_and_no_folder_of_ours(tmp_path, checkpoint):
    folder = checkpoint("llama-biased")
    config = json.loads((folder / "config.json").read_text()) | {"partial_rotary_factor": 7 / 16}
    (folder / "config.json").write_text(json.dumps(config))
    file = write_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(ConfigError) as refused:
        Checkpoint(file)
    assert "phirt-gguf" not in str(refused.value)


def test_shards_are_one_model(tmp_path, checkpoint):
    folder = checkpoint("qwen3")
    write_gguf(folder, tmp_path / "model.gguf", split_max_tensors=10)
    shards = sorted(tmp_path.glob("model-*.gguf"))
    assert len(shards) > 2
    opened, whole = Checkpoint(shards[1]), Checkpoint(folder)
    for name in whole.shapes:
        np.testing.assert_array_equal(opened.tensor(name), whole.tensor(name))
    shards[-1].unlink()
    with pytest.raises(ConfigError, match="1 are missing: model-0000"):
        Checkpoint(shards[0])


def test_scales_that_are_not_finite_are_refused(tmp_path, checkpoint):
    file = write_gguf(checkpoint("phi-3-mini"), tmp_path / "model.gguf", lambda name: Kind.Q4_0)
    place = {t.name: t.data_offset for t in gguf.GGUFReader(file).tensors}["blk.0.ffn_down.weight"]
    raw = bytearray(file.read_bytes())
    raw[place : place + 2] = np.float16(np.nan).tobytes()
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match="not finite"):
        export_bundle(file, tmp_path / "bundle")


def sentencepiece_like(folder, texts):
    """Puts a tokenizer with byte fallback, trained on some texts, into a checkpoint folder."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator([word for text in texts for word in text.split()], trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [
        {
            "id": n, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for n, name in enumerate(["<unk>", "<s>", "</s>"])
    ]  # fmt: skip
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    steps = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    document["decoder"] = {"type": "Sequence", "decoders": steps}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))


def test_a_sentencepiece_vocabulary_gives_the_same_ids(tmp_path, checkpoint):
    folder = checkpoint("phi-3-mini")
    sentencepiece_like(folder, samples.SENTENCES)
    opened = Checkpoint(write_gguf(folder, tmp_path / "model.gguf"))
    mine, own = (
        tokenizers.Tokenizer.from_file(str(place / TOKENIZER_NAME)) for place in (opened.folder, folder)
    )
    for text in (TEXT, *samples.SENTENCES, "", " ", "  two  spaces ", "a</s>b"):
        assert mine.encode(text).ids == own.encode(text).ids
        assert mine.decode(mine.encode(text).ids) == own.decode(own.encode(text).ids)
    assert opened.config.tokens.eos == (2,)


def test_ways_of_cutting_words_are_those_of_the_families():
    transformers = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    (split, _) = PRE_TOKENIZERS["qwen2"].pre_tokenizer["pretokenizers"]
    assert split["pattern"]["Regex"] == transformers.PRETOKENIZE_REGEX
    (split, _) = PRE_TOKENIZERS["gpt-4o"].pre_tokenizer["pretokenizers"]
    assert split["pattern"]["Regex"] == tokenizer_of_checkpoints.PATTERN


@pytest.mark.parametrize(
    ("name", "words"),
    [  # worked out by hand from the patterns
        ("gpt-2", ["I", "'ll", " pay", " 1234", "€!", "\n\n", " OK"]),
        ("smollm", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "€!", "\n\n", " OK"]),
        ("llama-bpe", ["I", "'ll", " pay", " ", "123", "4", "€!\n\n", " OK"]),
        ("dbrx", ["I", "'ll", " pay", " ", "123", "4", "€!\n\n", " OK"]),
        ("qwen2", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "€!\n\n", " OK"]),
        ("gpt-4o", ["I'll", " pay", " ", "123", "4", "€!\n\n", " OK"]),
        ("tekken", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "€!\n\n", " OK"]),
    ],
)
def test_words_are_cut_as_each_name_says(name, words):
    parts = PRE_TOKENIZERS[name].pre_tokenizer
    cut = tokenizers.Tokenizer(models.BPE())
    document = json.loads(cut.to_str()) | {"pre_tokenizer": parts}
    found = tokenizers.Tokenizer.from_str(json.dumps(document)).pre_tokenizer.pre_tokenize_str(
        "I'll pay 1234€!\n\n OK"
    )
    letters = {letter: byte for byte, letter in enumerate(tokenizer_of_checkpoints.byte_letters())}
    assert [bytes(letters[c] for c in word).decode() for word, _ in found] == words
