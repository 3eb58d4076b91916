"""The manifest is validated once, at the border, with messages that say what to do."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import as_version_1, write_bundle

import phirt
from phirt.bundle.document import manifest_bytes, parse_manifest
from phirt.bundle.files import load_manifest, require_intact, verify_bundle
from phirt.bundle.manifest import Rule
from phirt.encoders.encoder import open_encoders
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
    assert (manifest.modalities, manifest.placeholders) == (("image", "audio"), (1, 2))
    assert manifest.encoders["speech"].projectors == ("speech", "vision")
    assert manifest.rules[0] == Rule(("image",), "vision", {"speech": "vision"})
    assert not manifest.geometry.has_long_regime
    assert manifest.path("tokenizer.json").is_file()


def test_what_is_written_is_what_is_read(bundle):
    manifest = load_manifest(bundle)
    raw = manifest_bytes(manifest)
    assert parse_manifest(raw, bundle) == dataclasses.replace(
        manifest, fingerprint=hashlib.sha256(raw).hexdigest()
    )


def test_what_would_not_load_is_not_written(bundle):
    manifest = load_manifest(bundle)
    for changes in ({"name": "\ud800"}, {"rules": ()}, {"quantization": {"loss": math.nan}}):
        with pytest.raises(BundleError):
            manifest_bytes(dataclasses.replace(manifest, **changes))


@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True), (False, False)])
def test_the_first_version_says_the_same(tmp_path, parts):
    vision, speech = parts
    new = load_manifest(write_bundle(tmp_path, vision=vision, speech=speech))
    change(tmp_path, lambda d: [old := as_version_1(d), d.clear(), d.update(old)])
    old = load_manifest(tmp_path)
    assert dataclasses.replace(old, fingerprint=new.fingerprint) == new


def edited(*path, **changes):
    """An edit of the manifest that updates the object at `path`."""

    def edit(document):
        for key in path:
            document = document[key]
        document.update(changes)

    return edit


def dropped(*path):
    """An edit of the manifest that takes out what is at `path`."""

    def edit(document):
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return edit


def added(*path, **entry):
    """An edit of the manifest that appends to the list at `path`."""

    def edit(document):
        for key in path:
            document = document[key]
        document.append(entry)

    return edit


EMPTY_GRAPH = {"file": "decoder.onnx", "data": [], "target": "", "inputs": [], "outputs": []}
SURROGATE = "is '\\ud800', expected a"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (edited(version=3), "version 3 is not known, accepted: 1, 2; update phirt"),
        (edited(version=True), "version True is not known"),
        (edited(version=2.0), "version 2.0 is not known"),
        (dropped("version"), "version None is not known"),
        (edited(format="gguf"), "format is 'gguf', accepted: 'phirt-bundle'"),
        (edited(name=7), "'name' is 7, expected a string"),
        (dropped("geometry"), "'geometry' is missing"),
        (edited("geometry", num_layers=0), "'num_layers' is 0, expected a whole number from 1"),
        (edited("geometry", num_layers=2.0), "'num_layers' is 2.0"),
        (edited("geometry", num_layers=True), "'num_layers' is True"),
        (edited("geometry", num_kv_heads=3), "num_heads 4 is no multiple of num_kv_heads 3"),
        (edited("geometry", context=1 << 40), "'context'"),
        (edited("geometry", head_dim=8), "rotary_dim 16 is more than head_dim 8"),
        (edited("geometry", head_dim=32), "'past_key_values.0.key' has the shape [1, 2, 'capacity', 16], ex"),
        (edited("geometry", num_layers=3), "'past_key_values.2.key' is missing"),
        (edited("geometry", num_layers=1), "2 caches beyond those of its 1 layers"),
        (edited("geometry", num_kv_heads=1), "'past_key_values.0.key' has the shape"),
        (edited("geometry", hidden_size=64), "'media_features' has the shape ['media', 32], expected [any,"),
        (edited("geometry", vocab_size=600), "'logits' has the shape [1, 'num_logits', 512], expected"),
        (edited("geometry", "rope", long_factor=[1.0]), "rotary_dim 16 needs 8"),
        (edited("geometry", "rope", rotary_dim=15), "rotary_dim 15 needs 7 short and long factors and must"),
        (edited("geometry", "rope", theta=0), "'theta' is 0"),
        (edited("geometry", "rope", theta=1e13), "'theta' is 1"),
        (edited("tokens", eos=4), "'eos' is 4, expected a list"),
        (edited("tokens", eos=[]), "'eos' is [], expected a list of whole numbers from 0"),
        (edited("tokens", eos=[0, 512]), "tokens: eos is 512, expected a whole number from 0 to 511"),
        (edited("tokens", bos=512), "tokens: bos is 512"),
        (edited("encoders", "vision", placeholder=512), "encoders['vision']: placeholder is 512"),
        (edited("encoders", "vision", placeholder=4), "encoders['vision']: placeholder 4 is eos too"),
        (edited("encoders", "vision", placeholder=2), "placeholder 2 is the placeholder of 'vision' too"),
        (edited("tokens", bos=1), "encoders['vision']: placeholder 1 is bos too"),
        (edited("encoders", "vision", modality="video"), "'modality' is 'video', expected one of image, aud"),
        (edited("encoders", "vision", modality="audio"), "two encoders take the same modality"),
        (edited("encoders", "vision", graph="eye"), "graph 'eye' is no graph of its own; 'graphs' has decod"),
        (edited("encoders", "vision", graph="decoder"), "graph 'decoder' is no graph of its own"),
        (edited("encoders", "vision", graph="speech"), "encoders['vision']: its projectors are image, and i"),
        (edited("encoders", "vision", projectors=[]), "'projectors' is [], expected a list of names"),
        (edited("encoders", "vision", projectors=["a", "b"]), "its projectors are a, b, and its graph has n"),
        (edited("encoders", "speech", projectors=["a"]), "its projectors are a, and its graph has an input"),
        (edited("encoders", "speech", projectors=["vision"] * 2), "projectors vision, vision are not all di"),
        (edited("encoders", "vision", constants=[]), "'constants' is [], expected an object"),
        (dropped("encoders", "vision"), "graphs['vision'] belongs to no encoder"),
        (dropped("graphs", "vision"), "encoders['vision']: graph 'vision' is no graph of its own"),
        (dropped("graphs", "decoder"), "'graphs' has no 'decoder'"),
        (edited("graphs", extra=EMPTY_GRAPH), "graphs['extra'] belongs to no encoder"),
        (dropped("graphs", "decoder", "inputs", 0), "graphs['decoder']: 'input_ids' is missing"),
        (dropped("graphs", "decoder", "outputs", 0), "graphs['decoder']: "),
        (edited("graphs", "decoder", "inputs", 1, name="input_ids"), "inputs share the name 'input_ids'"),
        (edited("graphs", "decoder", "inputs", 0, dtype="bool"), "'input_ids' is bool, expected int64"),
        (edited("graphs", "decoder", "inputs", 0, shape=[1, 1, 1]), "'input_ids' has the shape [1, 1, 1], e"),
        (edited("graphs", "decoder", "inputs", 0, shape=[-1]), "'shape'[0] is -1, expected a whole number f"),
        (edited("graphs", "vision", "outputs", 0, shape=["rows", 31]), "no output of its graph has the deco"),
        (edited("graphs", "vision", "inputs", 0, dtype="char"), "'dtype' is 'char', expected one of float32"),
        (edited("graphs", "decoder", file="other.onnx"), "'other.onnx' is used but not listed"),
        (edited("graphs", "decoder", data=["../w.data"]), "'../w.data' is used but not listed"),
        (edited(tokenizer="x.json"), "'x.json' is used but not listed"),
        (edited("files", "decoder.onnx", sha256="xyz"), "expected 64 lower-case hex digits"),
        (edited("files", "decoder.onnx", size=-1), "'size' is -1"),
        (dropped("adapters", "vision"), "rules[0]: adapter 'vision' is unknown; 'adapters' has speech"),
        (edited("adapters", idle={"id": 3}), "adapters['idle'] is used by no rule"),
        (edited("adapters", none={"id": 3}), "an adapter is called 'none', which stands for the base weight"),
        (edited("adapters", "vision", id=0), "'id' is 0, expected a whole number from 1 to 255"),
        (edited("adapters", "speech", id=1), "'adapters' share an id: [1, 1]"),
        (edited(rules=[]), "'rules' is [], expected a list of objects, 1 to 64 of them"),
        (dropped("rules", 2), "the last of 'rules' must fit every conversation"),
        (dropped("rules", 0), "encoders['vision'] takes image input, which no rule names"),
        (edited("rules", 0, modalities=[]), "encoders['vision'] takes image input, which no rule names"),
        (added("rules", modalities=[], adapter=None, projectors={}), "rules[3] is never reached: one before"),
        (edited("rules", 0, projectors={}), "rules[0]: no projector for encoders['speech'], which has speec"),
        (edited("rules", 0, projectors={"speech": "x"}), "projector 'x' is unknown; encoders['speech'] has"),
        (edited("rules", 0, projectors={"x": "x"}), "a projector for 'x', which is no encoder; 'encoders' h"),
        (edited("limits", audio_seconds="long"), "'audio_seconds' is 'long'"),
        (edited("limits", image_pixels=0), "'image_pixels' is 0"),
        (edited("limits", context=1025), "limits: context 1025 is more than the 1024 positions of the geome"),
        (edited(quantization=[4]), "'quantization' is [4], expected an object"),
        (edited(files=[]), "'files' is [], expected an object"),
        (edited(name="\ud800"), f"'name' {SURROGATE}"),
        (edited(description="\udc80"), "'description' is '\\udc80', expected a"),
        (edited("files", **{"\ud800": {"size": 0, "sha256": "0" * 64}}), "'files' has the key '\\ud800'"),
        (edited("graphs", "vision", "inputs", 0, name="\ud800"), f"'name' {SURROGATE}"),
        (edited("graphs", "vision", "inputs", 0, shape=["\ud800"]), "'shape'[0] is '\\ud800'"),
        (edited("encoders", "vision", kind="\ud800"), f"'kind' {SURROGATE}"),
        (edited("encoders", "vision", projectors=["\ud800"]), f"'projectors'[0] {SURROGATE}"),
        (edited("encoders", "vision", constants={"\ud800": 1}), "'constants' has the key '\\ud800'"),
        (edited("encoders", "vision", constants={"a": ["\ud800"]}), "'constants'['a'] is ['\\ud800']"),
        (edited("adapters", **{"\ud800": {"id": 3}}), "'adapters' has the key '\\ud800'"),
        (edited(quantization={"method": "\ud800"}), "'quantization'['method'] is '\\ud800'"),
    ],
)  # fmt: skip
def test_refuses_with_the_reason(own_bundle, edit, expected):
    change(own_bundle, edit)
    with pytest.raises(BundleError) as refused:
        load_manifest(own_bundle)
    assert expected in str(refused.value)
    assert len(str(refused.value).encode().splitlines()) == 1


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (edited(image=None), "'image' and the graph 'vision' must come together"),
        (edited("tokens", audio=None), "'tokens' has no 'audio' placeholder"),
        (edited("tokens", image=512), "encoders['vision']: placeholder is 512"),
        (dropped("routes", "none"), "'routes' has no 'none'"),
        (dropped("routes", "vision"), "'routes' has no 'vision' though the bundle has a vision graph"),
        (edited("routes", "speech", id=1), "'routes' share an id: [0, 1, 1]"),
        (edited("routes", "speech", adapter="vision"), "'routes' share the adapter 'vision'"),
        (edited("routes", "vision", audio_projector=None), "rules[0]: no projector for encoders['speech']"),
        (edited("routes", "vision", audio_projector="x"), "projector 'x' is unknown"),
        (edited("routes", "none", adapter="x"), "rules[2]: adapter 'x' is unknown"),
        (edited(routes=[]), "must be a JSON object, got list"),
        (edited("routes", vision=7), "must be a JSON object, got int"),
        (edited(tokens=[]), "must be a JSON object, got list"),
        (edited(graphs={}), "'image' and the graph 'vision' must come together"),
        (edited("tokens", eos=[]), "'eos' is []"),
    ],
)
def test_refuses_manifests_of_the_first_version_too(own_bundle, edit, expected):
    change(own_bundle, lambda d: [old := as_version_1(d), d.clear(), d.update(old)])
    change(own_bundle, edit)
    with pytest.raises(BundleError) as refused:
        load_manifest(own_bundle)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (edited("encoders", "vision", kind="eye"), "kind 'eye' is not known, accepted: fixed_image, phi4mm"),
        (edited("encoders", "vision", kind="source"), "kind 'source' is not known"),
        (edited("encoders", "vision", kind="../x"), "kind '../x' is not known"),
        (edited("encoders", "vision", kind="phi4mm_audio"), "constants: 'sample_rate' is missing"),
        (edited("encoders", "vision", "constants", crop_size=30), "crop_size 30 is no multiple of patch_siz"),
        (edited("encoders", "vision", "constants", crop_size=64), "'pixel_values' has the shape ['crops', 3"),
        (edited("encoders", "vision", "constants", pool=0), "constants: 'pool' is 0"),
        (edited("encoders", "speech", "constants", num_mels=40), "'audio_embeds' has the shape"),
        (edited("encoders", "speech", "constants", sample_rate=8000), "'sample_rate' is 8000"),
        (added("graphs", "vision", "inputs", name="extra", dtype="bool", shape=[]), "'extra' is not known t"),
        (edited("graphs", "vision", "outputs", 0, dtype="float16"), "'image_features' is float16, expected"),
        (edited("graphs", "vision", "outputs", 0, name="rows"), "'image_features' is missing"),
    ],
)  # fmt: skip
def test_loading_refuses_encoders_that_their_kind_cannot_work_with(own_bundle, edit, expected):
    change(own_bundle, edit)
    with pytest.raises(BundleError) as refused:
        phirt.load(own_bundle, threads=1)
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


@st.composite
def places(draw, document):
    """The parent of something in a document, and its key; every part of the document is as likely."""
    parent, key = document, draw(st.sampled_from(sorted(document)))
    while isinstance(parent[key], dict | list) and parent[key] and draw(st.integers(0, 3)):
        parent = parent[key]
        key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
    return parent, key


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=6)
    | st.sampled_from(
        ["vision", "speech", "decoder", "image", "audio", "none", "projector", 0, 1, 2, 4, 511]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data(), version=st.sampled_from([1, 2]), count=st.integers(1, 3))
def test_whatever_is_changed_only_a_line_of_reason_comes_out(bundle, data, version, count):
    document = json.loads((bundle / "manifest.json").read_text())
    document = as_version_1(document) if version == 1 else document
    for _ in range(count):
        parent, key = data.draw(places(document))
        action = data.draw(st.sampled_from(["replace", "drop", "duplicate", "move"]))
        if action == "replace":
            parent[key] = data.draw(anything)
        elif action == "drop":
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif action == "duplicate":
            parent[data.draw(st.text(st.characters(), max_size=6))] = copy.deepcopy(parent[key])
        else:
            target = data.draw(st.sampled_from(sorted(parent)))
            parent[target] = parent.pop(key)
        if not document:
            break
    try:
        manifest = parse_manifest(json.dumps(document).encode(), bundle)
        open_encoders(manifest)
    except BundleError as refused:
        line = str(refused)
        line.encode()
        assert "\n" not in line and len(line) < 2000
