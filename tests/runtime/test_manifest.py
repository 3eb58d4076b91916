"""The manifest is validated once, at the border, with messages that say what to do."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phirt.bundle.files import load_manifest, require_intact, verify_bundle
from phirt.bundle.manifest import parse_manifest
from phirt.errors import BundleError


def change(folder, edit) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_reads_what_the_file_says(bundle):
    manifest = load_manifest(bundle)
    assert (manifest.name, manifest.geometry.hidden_size, manifest.geometry.rope.rotary_dim) == (
        "tiny",
        32,
        16,
    )
    assert manifest.tokens.eos == (0, 4)
    assert manifest.graphs["decoder"].inputs[0].shape == (1, "tokens")
    assert manifest.routes["vision"].audio_projector == "vision"
    assert manifest.image.grid == 8
    assert not manifest.geometry.has_long_regime
    assert manifest.path("tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda d: d.update(version=2), "version 2 is not known, accepted: 1; update phirt"),
        (lambda d: d.update(version=True), "version True is not known"),
        (lambda d: d.pop("version"), "version None is not known"),
        (lambda d: d.update(format="gguf"), "format is 'gguf', accepted: 'phirt-bundle'"),
        (lambda d: d.update(name=7), "'name' is 7, expected a string"),
        (lambda d: d.pop("geometry"), "'geometry' is missing"),
        (lambda d: d["geometry"].update(num_layers=0), "'num_layers' is 0, expected a whole number from 1"),
        (lambda d: d["geometry"].update(num_layers=2.0), "'num_layers' is 2.0"),
        (lambda d: d["geometry"].update(num_layers=True), "'num_layers' is True"),
        (lambda d: d["geometry"].update(num_kv_heads=3), "no multiple of num_kv_heads 3"),
        (lambda d: d["geometry"].update(context=1 << 40), "'context'"),
        (lambda d: d["geometry"]["rope"].update(long_factor=[1.0]), "rotary_dim 16 needs 8"),
        (lambda d: d["geometry"]["rope"].update(theta=0), "'theta' is 0"),
        (lambda d: d["tokens"].update(image=512), "'image' is 512, expected a whole number from 0 to 511"),
        (lambda d: d["tokens"].update(eos=4), "'eos' is 4, expected a list"),
        (lambda d: d["image"].update(crop_size=30), "no multiple of patch_size x pool"),
        (lambda d: d.update(image=None), "'image' and the graph 'vision' must come together"),
        (lambda d: d["graphs"].pop("decoder"), "'graphs' has no 'decoder'"),
        (lambda d: d["graphs"]["vision"]["inputs"][0].update(dtype="char"), "'dtype' is 'char', accepted:"),
        (lambda d: d["graphs"]["decoder"].update(file="other.onnx"), "'other.onnx' is used but not listed"),
        (lambda d: d["graphs"]["decoder"].update(data=["../w.data"]), "'../w.data' is used but not listed"),
        (lambda d: d["files"]["decoder.onnx"].update(sha256="xyz"), "expected 64 lower-case hex digits"),
        (lambda d: d["files"]["decoder.onnx"].update(size=-1), "'size' is -1"),
        (lambda d: d["routes"].pop("none"), "'routes' has no 'none'"),
        (lambda d: d["routes"]["speech"].update(id=1), "share an id"),
        (lambda d: d["limits"].update(audio_seconds="long"), "'audio_seconds' is 'long'"),
        (lambda d: d.update(quantization=[4]), "'quantization' must be an object"),
        (lambda d: d.update(files=[]), "must be a JSON object, got list"),
    ],
)  # fmt: skip
def test_refuses_with_the_reason(own_bundle, edit, expected):
    change(own_bundle, edit)
    with pytest.raises(BundleError) as refused:
        load_manifest(own_bundle)
    assert expected in str(refused.value)


def test_ignores_notes_that_a_producer_added(own_bundle):
    change(own_bundle, lambda d: d.update(note="made on a Monday"))
    assert load_manifest(own_bundle).name == "tiny"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"version": NaN}', b"[" * 100000])
def test_refuses_what_is_no_json_object(own_bundle, text):
    (own_bundle / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError):
        load_manifest(own_bundle)


ESCAPES = st.one_of(
    st.sampled_from(
        [
            "/etc/passwd",
            "..",
            ".",
            "",
            "a//b",
            "a/",
            "/",
            "C:/x",
            "C:x",
            "\\\\host\\x",
            "a\\b",
            "a\nb",
            "a\0b",
        ]
    ),
    st.lists(st.sampled_from(["..", ".", "", "a"]), min_size=2, max_size=5)
    .filter(lambda parts: set(parts) != {"a"})
    .map("/".join),
)


@given(name=ESCAPES)
def test_refuses_every_path_that_leaves_the_bundle(bundle, name):
    document = json.loads((bundle / "manifest.json").read_text())
    document["files"][name] = {"size": 1, "sha256": "0" * 64}
    with pytest.raises(BundleError, match="leaves the bundle or is not plain"):
        parse_manifest(json.dumps(document).encode(), bundle)


def test_refuses_a_link_that_leaves_the_bundle(own_bundle, tmp_path):
    target = tmp_path / "outside"
    (own_bundle / "tokenizer.json").rename(target)
    (own_bundle / "tokenizer.json").symlink_to(target)
    with pytest.raises(BundleError, match=r"'tokenizer\.json' is a link that leaves the bundle"):
        load_manifest(own_bundle)
    with pytest.raises(BundleError, match="leaves the bundle"):
        verify_bundle(own_bundle)


def test_accepts_a_link_that_stays_inside(own_bundle):
    (own_bundle / "tokenizer.json").rename(own_bundle / "real.json")
    (own_bundle / "tokenizer.json").symlink_to("real.json")
    assert load_manifest(own_bundle).tokenizer == "tokenizer.json"


def test_refuses_a_loop_of_links(own_bundle):
    (own_bundle / "tokenizer.json").unlink()
    (own_bundle / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(BundleError):
        load_manifest(own_bundle)


def test_refuses_a_missing_file(own_bundle):
    (own_bundle / "decoder.data").unlink()
    with pytest.raises(BundleError, match=r"decoder\.data is missing"):
        load_manifest(own_bundle)


def test_refuses_a_truncated_file(own_bundle):
    path = own_bundle / "decoder.data"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(BundleError, match=f"has {size - 1} bytes, the manifest says {size}"):
        load_manifest(own_bundle)


@pytest.mark.parametrize("folder", ["missing", "file.txt", "empty"])
def test_refuses_what_is_no_bundle(tmp_path, folder):
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_manifest(tmp_path / folder)


def test_verify_names_every_damaged_file(own_bundle):
    data = bytearray((own_bundle / "decoder.data").read_bytes())
    data[100] ^= 1
    (own_bundle / "decoder.data").write_bytes(data)
    os.truncate(own_bundle / "speech.data", 1)
    (own_bundle / "vision.data").unlink()
    report = dict(verify_bundle(own_bundle))
    assert "sha256 is" in report.pop("decoder.data")
    assert "has 1 bytes" in report.pop("speech.data")
    assert "is missing" in report.pop("vision.data")
    assert set(report.values()) == {"ok"}
    with pytest.raises(BundleError, match=r"damaged: decoder\.data.*speech\.data.*vision\.data"):
        require_intact(own_bundle)


def test_verify_accepts_an_intact_bundle(bundle):
    report = verify_bundle(bundle)
    assert {name for name, _ in report} == {path.name for path in bundle.iterdir()} - {"manifest.json"}
    assert {detail for _, detail in report} == {"ok"}
    require_intact(bundle)
