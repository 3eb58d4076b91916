"""Checkpoints as people have them, case by case: each exports and answers as in transformers, or is refused
in one line that says why.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers_models import (
    CHATML,
    DROP,
    NAMES,
    ROPE,
    answer,
    build,
    byte_level,
    change_tensors,
    edit,
)

import phirt
from phirt.errors import BundleError, ConfigError, PhirtError
from phirt_export.checkpoint import Checkpoint
from phirt_export.exporter import export_bundle

SAID = "Tell me about the sea."
ADDED = {
    "__type": "AddedToken",
    "content": "<|im_start|>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}
QWEN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "checkpoint"


def exported(folder: Path, **options: Any) -> tuple[Path, list[str]]:
    remarks: list[str] = []
    bundle = export_bundle(
        folder, folder.parent / "bundle", remarks=remarks.append, **{"bits": 32, **options}
    )
    return bundle, remarks


def same_as_transformers(folder: Path, said: str = SAID, system: str | None = None) -> list[str]:
    """Exports, and compares prompt and greedy answer; what the export remarked."""
    bundle, remarks = exported(folder)
    messages = [{"role": "system", "content": system}] if system else []
    prompt_ids, token_ids = answer(folder, [*messages, {"role": "user", "content": said}])
    with phirt.load(bundle) as model:
        result = model.chat(system=system).send(said, max_new_tokens=16, temperature=0.0).result
    assert list(result.prompt_token_ids) == prompt_ids
    assert list(result.token_ids) == token_ids
    return remarks


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(PhirtError) as caught:
        exported(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_01_no_bos_id(folder):
    build(folder, "Qwen2", bos_token_id=None, names={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    same_as_transformers(folder)


@pytest.mark.parametrize("family", ["Qwen2", "Llama", "Qwen3", "Mistral"])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {"type": "linear", "factor": 2.0},
        {},
    ],
    ids=["yarn", "linear", "none"],
)
def test_02_rope_scaling_beside_rope_parameters(folder, family, scaling):
    build(folder, family)
    edit(folder / "config.json", rope_scaling=scaling)
    same_as_transformers(folder)


def test_02_a_theta_that_would_be_forgotten_is_refused(folder):
    build(folder, rope_parameters={**ROPE, "rope_theta": 1e6})
    edit(folder / "config.json", rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert "put the scaling into 'rope_parameters'" in refusal(folder)


def test_03_a_stored_head_is_used_whatever_the_flag_says(folder):
    build(folder)
    edit(folder / "config.json", tie_word_embeddings=True)
    same_as_transformers(folder)
    assert not Checkpoint(folder).config.decoder.tied


def test_03_a_copy_of_the_table_is_no_head_of_its_own(folder):
    build(folder, tie_word_embeddings=True)
    change_tensors(folder, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].clone()}))
    same_as_transformers(folder)
    assert Checkpoint(folder).config.decoder.tied


@pytest.mark.parametrize("form", ["'%d %b %Y'", "format='%d %b %Y'"])
def test_04_todays_date(folder, form):
    build(folder, template="{{ 'Today ' + strftime_now(" + form + ") + '\n' }}" + CHATML)
    same_as_transformers(folder)
    bundle, _ = exported(folder)
    with phirt.load(bundle) as model:
        ids = model.chat().send("hi", max_new_tokens=1).result.prompt_token_ids
        assert model.generator.tokenizer.decode(ids).startswith(f"Today {datetime.date.today():%d %b %Y}\n")


BODY = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
LOOP = "{% for m in messages %}{% if m['role'] == 'x' %}{% continue %}{% endif %}" + BODY + "{% endfor %}"


@pytest.mark.parametrize(
    "body", [LOOP, "{% for m in messages %}{% generation %}" + BODY + "{% endgeneration %}{% endfor %}"]
)
def test_05_tags(folder, body):
    build(folder, template=body + "{{ '<|im_start|>assistant\n' }}")
    same_as_transformers(folder)


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{% for m in messages %}{% endfro %}", "broken"),
        ("{{ messages[0].content | unknown_filter }}", "unknown_filter"),
        ("{{ raise_exception('bring tools') }}", "bring tools"),
        ("{{ messages[0].content + documents[0] }}", "fails"),
        ("hello", "drops a message"),
    ],
)
def test_05_what_a_template_cannot_get_is_said_at_export(folder, template, named):
    build(folder, template=template)
    assert named in refusal(folder)


def test_05_what_it_has_no_place_for_is_said_at_export(folder):
    source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}" + BODY
    build(folder, template=source + "{% endfor %}")
    _, remarks = exported(folder)
    assert [line.split(";")[0] for line in remarks] == [
        "the chat template takes no system message",
        "the chat template takes no tools (--tools)",
    ]


@pytest.mark.parametrize(
    ("template", "names", "config"),
    [
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
            "{{ 'assistant: ' }}",
            NAMES,
            {"eos_token_id": 397},
        ),
        ("{{ bos_token }}" + CHATML, {"eos_token": "<|im_end|>"}, {}),
        ("{{ bos_token }}" + CHATML, {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}, {}),
        ("{{ bos_token is defined }}{{ unk_token }}" + CHATML, {"bos_token": ADDED}, {}),
    ],
)
def test_07_names_from_tokenizer_config(folder, template, names, config):
    build(folder, template=template, names=names, **config)
    same_as_transformers(folder)


def test_08_a_turn_end_only_in_tokenizer_config(folder):
    build(folder, names={"eos_token": "<|im_end|>"}, bos_token_id=397, eos_token_id=397)
    assert Checkpoint(folder).config.tokens.eos == (397, 399)


def test_09_config_of_llama_2_and_1(folder, tmp_path):
    build(folder)
    edit(
        folder / "config.json",
        rope_parameters=DROP,
        head_dim=DROP,
        rope_scaling=None,
        dtype=DROP,
        torch_dtype="float16",
    )
    same_as_transformers(folder)
    older = build(tmp_path / "older" / "checkpoint", num_key_value_heads=4)
    edit(
        older / "config.json",
        rope_parameters=DROP,
        rope_theta=10000.0,
        num_key_value_heads=DROP,
        head_dim=DROP,
    )
    same_as_transformers(older)


def test_09_the_first_llama_1_names_its_context_otherwise(folder):
    build(folder)
    edit(folder / "config.json", max_position_embeddings=DROP, max_sequence_length=256)
    same_as_transformers(folder)
    assert Checkpoint(folder).config.decoder.rope.context == 256


def test_12_thinking_is_cut_out_of_earlier_answers(folder):
    tokenizer = byte_level(VOCAB_WITHOUT := 398)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    source = CHATML.replace(
        "m['content']", "(m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'])"
    )
    build(folder, tokenizer=tokenizer, template=source, eos_token_id=VOCAB_WITHOUT - 1)
    bundle, _ = exported(folder)
    with phirt.load(bundle) as model:
        chat, own = model.chat(), model.generator.tokenizer
        ids = (
            own.id_of("<think>"),
            *own.encode_content("sea"),
            own.id_of("</think>"),
            *own.encode_content("moon"),
        )
        chat._messages = (
            phirt.Message("user", "hi"),
            phirt.Message("assistant", own.decode(ids), token_ids=ids),
        )
        second = chat.send("and then", max_new_tokens=1).result.prompt_token_ids
    turns = [("user", "hi"), ("assistant", "<think>sea</think>moon"), ("user", "and then")]
    assert list(second) == answer(folder, [{"role": role, "content": text} for role, text in turns], 1)[0]


def test_13_trims(folder):
    build(folder, template=CHATML.replace("m['content']", "(m['content'] | trim)"))
    same_as_transformers(folder, "  Tell me \n")


def test_15_tokens_past_the_vocabulary(folder):
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<pad>", normalized=False)])
    build(folder, tokenizer=tokenizer, names={**NAMES, "pad_token": "<pad>"})
    same_as_transformers(folder)


@pytest.mark.parametrize("pad", [-1, 400, 32000, None])
def test_15_padding_ids_that_stand_for_none(folder, pad):
    build(folder)
    edit(folder / "config.json", pad_token_id=pad)
    if pad in (-1, None):
        same_as_transformers(folder)
    bundle, _ = exported(folder)  # transformers itself opens no such model
    assert json.loads((bundle / "manifest.json").read_text())["tokens"]["pad"] == 399


def test_16_leftover_tensors_are_left_out_with_a_notice(folder):
    build(folder)
    change_tensors(
        folder,
        lambda s: s.update({"v_head.summary.weight": torch.zeros(1, 64), "score.bias": torch.zeros(1)}),
    )
    remarks = same_as_transformers(folder)
    assert "2 tensors are left out, which no computation needs: score.bias, v_head.summary.weight" in remarks


def test_16_what_is_unknown_inside_a_layer_is_refused(folder):
    build(folder)
    change_tensors(folder, lambda s: s.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}))
    assert "1 unknown: model.layers.0.self_attn.q_norm.weight" in refusal(folder)


@pytest.mark.parametrize("method", ["hqq", "quanto", "aqlm", "eetq", None])
def test_17_quantized_checkpoints_are_refused_in_a_short_line(folder, method):
    build(folder)
    edit(folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    line = refusal(folder)
    assert "already quantized" in line and "original" in line and len(line) < 200 + len(str(folder))


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"]
)
def test_18_values_that_are_none_are_refused_by_name(folder, bits, value, name):
    build(folder)
    change_tensors(folder, lambda s: s[name].view(-1)[7:8].fill_(value))
    assert f"not finite, in {name};" in refusal(folder, bits=bits)


@pytest.mark.parametrize(("width", "heads"), [(1600, 25), (40, 2), (200, 5), (96, 6)])
@pytest.mark.parametrize("options", [{}, {"block_size": 64}])
def test_20_any_width_takes_blocks(folder, width, heads, options):
    build(
        folder,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=1,
        head_dim=16,
        std=0.02,
    )
    bundle, _ = exported(folder, bits=8, **options)
    with phirt.load(bundle) as model, phirt.load(exported_beside(folder)) as exact:
        ids = np.array([[5, 6, 7, 300]])
        near, true = (logits_of(one, ids) for one in (model, exact))
    assert np.abs(near - true).max() < 0.05 * np.abs(true).max()


def exported_beside(folder: Path) -> Path:
    return export_bundle(folder, folder.parent / "exact", bits=32)


def logits_of(model: phirt.Model, ids: np.ndarray) -> np.ndarray:
    seen: list[np.ndarray] = []

    def look(logits: np.ndarray, _: Any) -> np.ndarray:
        seen.append(logits.copy())
        return logits

    model.chat().send("the sea", max_new_tokens=1, logits_processors=[look], temperature=0.0).text()
    return seen[0]


def test_22_a_missing_head_is_told(folder):
    build(folder, tie_word_embeddings=True)
    edit(folder / "config.json", tie_word_embeddings=False)
    line = refusal(folder)
    assert "head is missing" in line and "tie_word_embeddings" in line


def test_23_tools_in_the_variable(folder):
    source = (
        "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
        + CHATML
    )
    build(folder, template=source)
    bundle, remarks = exported(folder)
    assert remarks == []
    tools = [{"name": "w", "parameters": {}}]
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tools=tools, add_generation_prompt=True, tokenize=False
    )
    with phirt.load(bundle) as model:
        ids = model.chat(tools=tools).send("hi", max_new_tokens=1).result.prompt_token_ids
    assert list(ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_24_without_a_template_plain_text_is_one(folder):
    build(folder, template=None)
    bundle, remarks = exported(folder)
    assert remarks[0].startswith("there is no chat template") and "chat_template.jinja" in remarks[0]
    with phirt.load(bundle) as model:
        own = model.generator.tokenizer
        ids = model.chat().send("the sea", max_new_tokens=1).result.prompt_token_ids
        assert list(ids) == own.encode_content("the sea")


def test_24_the_token_that_begins_a_text_begins_it(folder):
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level()
    tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 397)]
    )
    build(folder, template=None, tokenizer=tokenizer)
    bundle, _ = exported(folder)
    with phirt.load(bundle) as model:
        ids = model.chat().send("the sea", max_new_tokens=1).result.prompt_token_ids
    assert list(ids) == tokenizer.encode("the sea").ids


@pytest.mark.parametrize(
    "names", [("chat", "tool_use"), ("default", "tool_use"), ("rag", "default"), ("tool_use",)]
)
def test_24_of_named_templates_one_is_taken(folder, names):
    sources = {"tool_use": "{{ tools | tojson }}" + CHATML, "rag": "rag" + CHATML}
    build(folder, template=[{"name": name, "template": sources.get(name, CHATML)} for name in names])
    bundle, _ = exported(folder)
    with phirt.load(bundle) as model:
        own = model.generator.tokenizer
        ids = model.chat().send("hi", max_new_tokens=1).result.prompt_token_ids
        with_tools = model.chat(tools=[{"name": "w"}]) if "tool_use" in names else None
        if with_tools is not None:
            assert '"w"' in own.decode(with_tools.send("hi", max_new_tokens=1).result.prompt_token_ids)
    if names != ("tool_use",):
        assert ids[0] == own.id_of("<|im_start|>")


def test_26_dynamic_scaling_is_plain_up_to_the_context(folder):
    build(folder, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    remarks = same_as_transformers(folder)
    assert "dynamic" in remarks[0] and "512" in remarks[0]
    assert Checkpoint(folder).config.decoder.rope.context == 512


def test_28_a_context_past_two_million_is_capped(folder):
    build(folder)
    edit(folder / "config.json", max_position_embeddings=4194304)
    assert "capped at 2097152" in Checkpoint(folder).notices[0]
    assert Checkpoint(folder).config.decoder.rope.context == 1 << 21


@pytest.mark.parametrize("penalty", [1.1, 1.5])
def test_29_the_repetition_penalty_is_the_bundles_default(folder, penalty):
    build(folder)
    edit(folder / "generation_config.json", repetition_penalty=penalty)
    same_as_transformers(folder)
    bundle, _ = exported(folder)
    with phirt.load(bundle) as model:
        assert model.generator.defaults == phirt.GenerationConfig(repetition_penalty=penalty)
        plain = model.chat().send(SAID, max_new_tokens=16, repetition_penalty=1.0).result.token_ids
        given = model.chat().send(SAID, max_new_tokens=16, config=phirt.GenerationConfig()).result.token_ids
        assert plain == given


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({"do_sample": True, **QWEN}, QWEN),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": False, "temperature": 0.6}, {}),
        ({}, {}),
    ],
)
def test_29_sampling_becomes_the_bundles_default(folder, says, expected):
    build(folder)
    edit(folder / "generation_config.json", **says)
    bundle, remarks = exported(folder)
    assert any("do_sample false" in line for line in remarks) == (says.get("do_sample") is False)
    with phirt.load(bundle) as model:
        assert model.generator.defaults == phirt.GenerationConfig(**expected)
    if not expected:
        assert json.loads((bundle / "manifest.json").read_text())["generation"] is None


def test_29_a_senseless_recommendation_is_named(folder):
    build(folder)
    edit(folder / "generation_config.json", repetition_penalty="much")
    assert "repetition_penalty" in refusal(folder)


def test_errors_are_of_the_kinds_that_users_meet():
    assert issubclass(ConfigError, PhirtError) and issubclass(BundleError, PhirtError)
