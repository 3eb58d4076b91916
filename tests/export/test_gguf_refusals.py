"""GGUF files that are damaged, hostile or of other kinds: one short line each, before memory is taken."""

from __future__ import annotations

import json
import shutil
import struct

import gguf
import numpy as np
import pytest
from checkpoints.write import write_checkpoint
from gguf_models import write_gguf

from phirt.errors import ConfigError
from phirt_export.checkpoint import Checkpoint
from phirt_export.gguf_files.header import read_header


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ranks):
    """A checkpoint to make files of."""
    return write_checkpoint(tmp_path_factory.mktemp("gguf") / "llama", "llama", ranks)


@pytest.fixture
def file(tmp_path, folder):
    return write_gguf(folder, tmp_path / "model.gguf")


def header(tensors: int, keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


HEADERS = {
    "no GGUF file": (b"PK\x03\x04 something else", "does not begin with 'GGUF'"),
    "nothing": (b"", "does not begin with 'GGUF'"),
    "magic alone": (b"GGUF", "is truncated"),
    "version 1": (header(0, 0, version=1), "version 1 is not read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "endless tensors": (header(1 << 60, 0), "claims 1152921504606846976 tensors"),
    "endless keys": (header(0, 1 << 60), "keys"),
    "endless name": (header(0, 1, struct.pack("<Q", 1 << 62)), "a text claims"),
    "endless list": (header(0, 1, key(b"a", 9, struct.pack("<IQ", 4, 1 << 40))), "a list claims"),
    "long list in a short file": (header(0, 1, key(b"a", 9, struct.pack("<IQ", 4, 1 << 21))), "is truncated"),
    "nested lists": (header(0, 1, key(b"a", 9, struct.pack("<IQ", 9, 2))), "a list has items of type 9"),
    "unknown value": (header(0, 1, key(b"a", 77, b"\0" * 8)), "unknown type 77"),
    "key twice": (header(0, 2, key(b"a", 0, b"\1") * 2), "is there twice"),
    "name that is no text": (header(0, 1, key(b"\xff\xfe", 0, b"\1")), "utf-8"),
    "odd alignment": (header(0, 1, key(b"general.alignment", 4, struct.pack("<I", 24))), "no power of two"),
    "no alignment": (header(0, 1, key(b"general.alignment", 4, struct.pack("<I", 0))), "no power of two"),
    "many axes": (header(1, 0, tensor(b"t", (1,) * 9, 0, 0)), "has 9 axes"),
    "empty tensor": (header(1, 0, tensor(b"t", (0, 4), 0, 0)), "the shape"),
    "half a block": (header(1, 0, tensor(b"t", (33, 4), 2, 0) + b"\0" * 999), "the shape"),
    "unknown block type": (header(1, 0, tensor(b"t", (32, 4), 4711, 0)), "unknown type 4711"),
    "past the end": (header(1, 0, tensor(b"t", (32, 4), 0, 1 << 62)), "it is truncated"),
    "huge tensor": (header(1, 0, tensor(b"t", (1 << 62, 1 << 62), 0, 0)), "it is truncated"),
    "crooked offset": (header(1, 0, tensor(b"t", (1,), 0, 3) + b"\0" * 99), "not aligned"),
    "tensor twice": (header(2, 0, tensor(b"t", (1,), 0, 0) * 2 + b"\0" * 99), "the same name"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie_are_refused_in_one_line(tmp_path, name):
    raw, cause = HEADERS[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as refused:
        read_header(path)
    assert cause in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_file_cut_anywhere_is_refused(tmp_path, file):
    raw = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 400, 7), *range(400, len(raw), len(raw) // 40), len(raw) - 1]:
        cut.write_bytes(raw[:size])
        with pytest.raises(ConfigError):
            Checkpoint(cut)


def test_changed_bytes_of_a_header_end_in_one_line_or_in_a_model(tmp_path, file):
    raw = file.read_bytes()
    other = tmp_path / "changed.gguf"
    for place in range(4, 3000, 41):
        changed = bytearray(raw)
        changed[place] ^= 0x55
        other.write_bytes(changed)
        try:
            Checkpoint(other)
        except ConfigError as error:
            assert "\n" not in str(error)


def with_keys(tmp_path, folder, change, **options):
    return write_gguf(folder, tmp_path / "changed.gguf", change=change, **options)


def test_what_is_not_read_is_named_with_what_is(tmp_path, folder):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "gptneox")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="'gptneox' is not read, accepted: llama, qwen2, qwen3, phi3"):
        Checkpoint(path)
    with pytest.raises(ConfigError, match=r"'viking', a way of cutting words that is not known.*gpt-2"):
        Checkpoint(write_gguf(folder, tmp_path / "a.gguf", pre="viking"))
    with pytest.raises(ConfigError, match="mixtures of experts"):
        Checkpoint(with_keys(tmp_path, folder, lambda writer: writer.add_expert_count(8)))
    with pytest.raises(ConfigError, match=r"'llama\.rope\.scaling\.type' is 'su'"):
        Checkpoint(
            write_gguf(
                write_checkpoint_without_factors(tmp_path, folder),
                tmp_path / "b.gguf",
                change=lambda writer: writer.add_string("llama.rope.scaling.type", "su"),
            )
        )


def write_checkpoint_without_factors(tmp_path, folder):
    """The same checkpoint without rotary scaling."""
    plain = shutil.copytree(folder, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text()) | {"rope_scaling": None}
    (plain / "config.json").write_text(json.dumps(config))
    return plain


def test_a_tensor_of_another_kind_of_model_is_named(tmp_path, folder):
    def change(writer):
        writer.add_tensor("blk.0.ssm_in.weight", np.zeros((4, 4), np.float32))

    with pytest.raises(ConfigError, match=r"'blk.0.ssm_in.weight', which decoders .* have not"):
        Checkpoint(with_keys(tmp_path, folder, change))
