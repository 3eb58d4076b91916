"""Packages for phones: templates as fixed pieces, what fits a device, what is refused before the work."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from phirt.bundle.manifest import Geometry, Modality, Tokens
from phirt.errors import ConfigError
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.messages import Media, Message
from phirt.prompt.tokenizer import Tokenizer
from phirt_export.mobile.golden_media import PICTURES, RECORDINGS, ppm, wav
from phirt_export.mobile.host_tokenizer import require_host_tokenizer
from phirt_export.mobile.memory import parse_memory, plan_memory
from phirt_export.mobile.operators import config_text
from phirt_export.mobile.profiles import known_profiles, read_profile
from phirt_export.mobile.rendering import as_document, fixed_rendering

_ROOT = Path(__file__).resolve().parents[2]
_NANO = _ROOT / "tests" / "bundles" / "nano"
_MEDIA: dict[str, tuple[Modality, int]] = {"vision": ("image", 1), "speech": ("audio", 2)}
_CHATML = (
    "{% for message in messages %}<|user|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
_TRIMMED = (
    "{% for m in messages %}{% if m.role == 'system' %}<|system|>{{ m.content }}<|end|>"
    "{% elif m.role == 'user' %}<|user|>{{ m.content | trim }}<|end|>"
    "{% else %}<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|assistant|>"
)
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.first %}{{ s }}{% endif %}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }} <|end|>{% endif %}{% endfor %}"
)
_NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}" + _CHATML
)
_THINKING = _CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
_COUNTS = _CHATML.replace("message['role'] }}", "message['role'] }}{{ loop.index }}")


def template(source: str) -> ChatTemplate:
    tokenizer = Tokenizer(_NANO / "tokenizer.json", 4096)
    return ChatTemplate(
        source, tokenizer, Tokens(0, 0, (0, 4)), {name: token for name, (_, token) in _MEDIA.items()}
    )


def test_nanos_own_template() -> None:
    rendering = fixed_rendering(template((_NANO / "chat_template.jinja").read_text("utf-8")), _MEDIA)
    (variant,) = rendering.variants
    assert (variant.media, variant.first, variant.reply) == (None, (5,), (4, 3))
    assert variant.system is not None and variant.system.behind == (4, 5)
    assert as_document(rendering)["trims"] == {"system": False, "user": False, "assistant": False}


@pytest.mark.parametrize("source", [_CHATML, _TRIMMED, _LLAMA2, _NO_SYSTEM])
def test_what_pieces_say_is_what_the_template_says(source: str) -> None:
    made = template(source)
    rendering = fixed_rendering(made, _MEDIA)
    image = Media("vision", "image", "key", 3, None)
    messages = [
        Message("user", " What is this? ", (image,)),
        Message("assistant", "a cat", token_ids=(9, 10)),
        Message("user", "\nAnd that?\n"),
    ]
    assert made.joined(rendering.parts(messages)) == made.joined(made.render(messages))


def test_a_template_that_trims_what_is_asked() -> None:
    assert fixed_rendering(template(_TRIMMED), _MEDIA).trims == {
        "system": False,
        "user": True,
        "assistant": False,
    }


def test_a_template_without_a_place_for_system_messages() -> None:
    rendering = fixed_rendering(template(_NO_SYSTEM), {})
    assert rendering.variants[0].system is None
    with pytest.raises(ConfigError, match="no system message"):
        rendering.parts([Message("system", "s"), Message("user", "u")])


def test_a_default_system_message_for_text_alone() -> None:
    """As mini's: other pieces where media are."""
    source = (
        "{% set seen = namespace(media=false) %}{% for m in messages %}{% if '￼' in m['content'] %}"
        "{% set seen.media = true %}{% endif %}{% endfor %}{% for m in messages %}"
        "{% if loop.first and m['role'] != 'system' and not seen.media %}<|system|>default<|end|>{% endif %}"
        "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}<|assistant|>"
    )
    rendering = fixed_rendering(template(source), _MEDIA)
    assert [(variant.media, variant.first) for variant in rendering.variants] == [
        (False, (6, "default", 4, 5)),
        (True, (5,)),
    ]


@pytest.mark.parametrize("source", [_THINKING, _COUNTS])
def test_what_pieces_cannot_say_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written as fixed pieces"):
        fixed_rendering(template(source), _MEDIA)


def test_published_templates_are_said_or_refused() -> None:
    """Each in one line; most are said."""
    path = _ROOT / "tests" / "runtime" / "chat_templates.jsonl"
    said = refused = 0
    for line in path.read_text("utf-8").splitlines()[::6]:
        try:
            fixed_rendering(template(json.loads(line)["template"]), {})
            said += 1
        except ConfigError as error:
            assert "\n" not in str(error)
            refused += 1
    assert said > refused > 0


GEOMETRY = Geometry(32, 24, 8, 128, 3072, 8192, 200064, 131072, None)


def test_the_context_follows_the_device() -> None:
    plan = plan_memory(GEOMETRY, 4, 2 << 30, 300 << 20, parse_memory("16GB"), 0.5)
    assert plan.available == 8 << 30
    assert plan.context == 13000  # 3,424 MiB are left, 256 kiB a token: 13,696, in whole thousands
    assert plan.total <= plan.available
    assert plan_memory(GEOMETRY, 4, 2 << 30, 300 << 20, None, 0.5).context == 131072


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a device with 6\.0 GB can rely on 3\.0 GB; export fewer bits"):
        plan_memory(GEOMETRY, 4, 2 << 30, 300 << 20, parse_memory("6GB"), 0.5)


def test_a_limit_holds_whatever_the_device_has() -> None:
    """A page has four gigabytes of addresses at most."""
    limit = 4 << 30
    for device in (None, parse_memory("64GB")):
        plan = plan_memory(GEOMETRY, 4, 1 << 30, 300 << 20, device, 0.4, limit)
        assert plan.available == limit and plan.total <= limit and plan.context < 131072
    with pytest.raises(
        ConfigError,
        match=r"and a program of this target can rely on 4\.0 GB; export fewer bits .* or --kv int8$",
    ):
        plan_memory(GEOMETRY, 4, 3 << 30, 300 << 20, None, 0.4, limit)


@pytest.mark.parametrize("text", ["", "6", "six GB", "-1GB", "0.1GB", "99999GB", "6TB", "nanGB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--device-memory"):
        parse_memory(text)


def test_profiles() -> None:
    assert known_profiles() == ("android", "ios", "web")
    assert all(read_profile(name).name == name for name in known_profiles())
    with pytest.raises(ConfigError, match="choose from android, ios, web"):
        read_profile("symbian")


def test_operators_are_written_as_onnxruntime_reads_them() -> None:
    text = config_text({("ai.onnx", 21): {"MatMul", "Add"}, ("com.microsoft", 1): {"MatMulNBits"}})
    assert text.splitlines()[1:] == ["ai.onnx;21;Add,MatMul", "com.microsoft;1;MatMulNBits"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"normalizer": {"type": "NFC"}}, "a normalizer, NFC"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "the step Metaspace"),
        ({"model": {"type": "Unigram"}}, "its model is Unigram"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "ByteLevel without a space"),
    ],
)
def test_tokenizers_that_no_app_reads(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    document = json.loads((_NANO / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(document | change), "utf-8")
    with pytest.raises(ConfigError, match=problem):
        require_host_tokenizer(tmp_path / "tokenizer.json")
    require_host_tokenizer(_NANO / "tokenizer.json")


def test_golden_media_are_what_hosts_read() -> None:
    for draw in PICTURES.values():
        with Image.open(io.BytesIO(ppm(draw()))) as picture:
            assert np.array_equal(np.asarray(picture), draw())
    for play in RECORDINGS.values():
        samples, rate = soundfile.read(io.BytesIO(wav(play())), dtype="int16")
        assert rate == 16000 and np.array_equal(samples, play())
        assert abs(int(np.abs(samples).max()) - 12000) <= 1


def test_a_package_from_a_checkpoint(tmp_path: Path) -> None:
    from small_models import config, random_model, save_checkpoint
    from typer.testing import CliRunner

    from phirt.bundle.files import require_intact
    from phirt_apps.cli import app

    checkpoint = save_checkpoint(random_model(config()), tmp_path / "checkpoint")
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer["pre_tokenizer"] = level
    tokenizer["model"]["vocab"] = {chr(97 + index): 10 + index for index in range(26)}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    turns = "{% for message in messages %}u{{ message['content'] }}e{% endfor %}a"
    (checkpoint / "chat_template.jinja").write_text(turns, "utf-8")
    output = tmp_path / "package"
    words = [
        "export",
        str(checkpoint),
        "-o",
        str(output),
        "--target",
        "android",
        "--bits",
        "4",
        "--method",
        "rtn",
    ]
    done = CliRunner().invoke(app, [*words, "--device-memory", "1GB"])
    assert done.exit_code == 0, done.stderr
    require_intact(output)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "package"}
    golden = json.loads((output / "golden.json").read_text("utf-8"))
    assert {"text", "image", "clip"} <= {case["name"] for case in golden["cases"]}
    operators = (output / "required_operators.config").read_text("utf-8")
    assert "com.microsoft;1;" in operators and "GroupQueryAttention" in operators
    assert "decoder_lora.onnx" not in {path.name for path in output.iterdir()}


def test_what_cannot_fit_is_refused_before_the_work(tmp_path: Path) -> None:
    from small_models import config, random_model, save_checkpoint

    from phirt_export.mobile import exporting, memory

    checkpoint = save_checkpoint(random_model(config()), tmp_path / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_COPIES", 1e4)
        with pytest.raises(ConfigError, match="an app on a device with"):
            exporting.export_package(checkpoint, tmp_path / "p", "ios", "256MB", lambda _: None)
        patch.setattr(memory, "_COPIES", 1e6)
        with pytest.raises(ConfigError, match="a program of this target can rely on"):
            exporting.export_package(checkpoint, tmp_path / "p", "web", None, lambda _: None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def test_settings_of_weights_are_refused_for_a_bundle(nano: Path, tmp_path: Path) -> None:
    from phirt_export.mobile.exporting import export_package

    for settings in ({"kv": "int8"}, {"bits": 4}, {"encoder_bits": 4}, {"calibration": [tmp_path]}):
        (name,) = settings
        with pytest.raises(ConfigError, match=f"^{name} cannot be set for a bundle"):
            export_package(nano, tmp_path / "package", "web", None, lambda _: None, **settings)


def test_a_package_is_made_alone() -> None:
    from phirt_export.mobile.exporting import is_for_package

    assert is_for_package(["android"], "6GB") and not is_for_package(["cpu", "qnn"], None)
    with pytest.raises(ConfigError, match="give it alone"):
        is_for_package(["cpu", "ios"], None)
    with pytest.raises(ConfigError, match="--device-memory is for packages"):
        is_for_package(["cpu"], "6GB")
