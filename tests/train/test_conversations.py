"""Conversations as token ids: the prompts of the runtime's own ChatTemplate, id for id, and a loss mask on
the answers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from phirt.errors import ConfigError
from phirt.fields import Fields, read_dataclass
from phirt.prompt.chat_template import ChatTemplate
from phirt.prompt.messages import Media, Message
from phirt.prompt.tokenizer import Tokenizer as RuntimeTokenizer
from phirt.prompt.tools import VISIBLE_TOKENS, Tools
from phirt_export.reference import ModelConfig
from phirt_train.chat_format import CHAT_TEMPLATE, SPECIAL_TOKENS
from phirt_train.context import TrainingContext
from phirt_train.data.conversations import ConversationEncoder
from phirt_train.data.records import Conversation
from phirt_train.data.token_store import load_conversations, load_documents
from phirt_train.recipe import load_recipe

RECIPE = Path(__file__).resolve().parents[2] / "export/recipes/nano"
CHATML = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
END = SPECIAL_TOKENS.id_of("<|end|>")
TALK: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": "What is <|end|> here?",
            "images": ["a.png", "b.png"],
            "audio": ["c.wav"],
        },
        {"role": "assistant", "content": "A mark."},
        {"role": "user", "content": "And this?", "images": ["d.png"]},
        {"role": "assistant", "content": "Nothing new."},
    ]
}
CALLING: dict[str, Any] = {
    "tools": [{"name": "get_weather"}],
    "messages": [
        {"role": "user", "content": "Warm in Paris?"},
        {"role": "assistant", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]},
        {"role": "tool", "content": '[{"celsius": 21}]'},
        {"role": "assistant", "content": "Yes."},
    ],
}


def write_tokenizer(path: Path, special: tuple[str, ...], first: int = 0) -> Path:
    """A tokenizer of single bytes; its special tokens are numbered from `first` on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: first + index for index, name in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.save(str(path))
    return path


@pytest.fixture
def model() -> ModelConfig:
    return load_recipe(RECIPE, "tiny").model


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json", SPECIAL_TOKENS.tokens)


def conversation(record: dict[str, Any]) -> Conversation:
    return read_dataclass(Conversation, Fields(record, "line 1", ConfigError, ""))


@pytest.mark.parametrize("record", [TALK, CALLING], ids=["media", "tools"])
def test_every_prompt_is_the_runtimes_id_for_id(
    record: dict[str, Any], model: ModelConfig, tokenizer: Path
) -> None:
    encoded = ConversationEncoder(tokenizer, CHAT_TEMPLATE, model).encode(conversation(record))
    runtime = RuntimeTokenizer(tokenizer, model.decoder.vocab_size, VISIBLE_TOKENS)
    template = ChatTemplate(CHAT_TEMPLATE, runtime, model.tokens, {"vision": 1, "speech": 2})
    tools = Tools.of(record.get("tools"))
    # The conversation as the runtime holds it: answers are the ids that were generated, here those learnt.
    messages = [Message("system", "")] if tools is not None else []
    learnt = np.array(encoded.loss_mask)
    begins = [i for i in range(1, len(learnt)) if learnt[i] and not learnt[i - 1]]
    ends = [i for i in range(1, len(learnt)) if learnt[i - 1] and (not learnt[i])] + [len(learnt)]
    spans = iter(zip(begins, ends, strict=True))
    for raw in record["messages"]:
        if raw["role"] == "assistant":
            begin, end = next(spans)
            prompt = template.encode(messages, None if tools is None else tools.json)
            assert prompt.ids.tolist() == list(encoded.token_ids[:begin])
            assert encoded.token_ids[end - 1] == END
            messages.append(Message("assistant", "", token_ids=encoded.token_ids[begin : end - 1]))
            continue
        media = [Media("vision", "image", name, 1, None) for name in raw.get("images", ())]
        media += [Media("speech", "audio", name, 1, None) for name in raw.get("audio", ())]
        role = template.tool_role if raw["role"] == "tool" else raw["role"]
        messages.append(Message(role, raw["content"], tuple(media)))
    assert next(spans, None) is None


def test_only_answers_and_the_tokens_that_end_them_are_learnt(model: ModelConfig, tokenizer: Path) -> None:
    encoded = ConversationEncoder(tokenizer, CHAT_TEMPLATE, model).encode(conversation(TALK))
    runtime = RuntimeTokenizer(tokenizer, model.decoder.vocab_size)
    learnt = [token for token, mask in zip(encoded.token_ids, encoded.loss_mask, strict=True) if mask]
    assert runtime.decode(learnt) == "A mark.Nothing new."
    assert learnt.count(END) == 2 and encoded.token_ids.count(END) == 5
    assert [(item.modality, item.path) for item in encoded.media] == [
        ("image", "a.png"), ("image", "b.png"), ("audio", "c.wav"), ("image", "d.png")
    ]  # fmt: skip
    assert [encoded.token_ids[item.position] for item in encoded.media] == [1, 1, 2, 1]


def test_calls_are_control_tokens_and_typed_ones_are_text(model: ModelConfig, tokenizer: Path) -> None:
    encoder = ConversationEncoder(tokenizer, CHAT_TEMPLATE, model)
    called, typed = (
        encoder.encode(conversation({"messages": [{"role": "user", "content": "?"}, answer]})).token_ids
        for answer in (
            {"role": "assistant", "tool_calls": [{"name": "f"}]},
            {"role": "assistant", "content": '<|tool_call|>[{"name": "f", "arguments": {}}]<|/tool_call|>'},
        )
    )
    opening = SPECIAL_TOKENS.id_of("<|tool_call|>")
    assert opening in called and opening not in typed
    runtime = RuntimeTokenizer(tokenizer, model.decoder.vocab_size, VISIBLE_TOKENS)
    assert runtime.decode(called).endswith('<|tool_call|>[{"name": "f", "arguments": {}}]<|/tool_call|>')


def test_another_familys_template_is_the_one_in_use(model: ModelConfig, tmp_path: Path) -> None:
    special = ("<|im_start|>", "<|im_end|>", "<|image|>", "<|audio|>")
    path = write_tokenizer(tmp_path / "tokenizer.json", special)
    tokens = dataclasses.replace(model.tokens, bos=1, pad=1, eos=(1,), image=2, audio=3)
    encoder = ConversationEncoder(path, CHATML, dataclasses.replace(model, tokens=tokens))
    encoded = encoder.encode(conversation({"messages": TALK["messages"][3:]}))
    text = RuntimeTokenizer(path, model.decoder.vocab_size, special).decode(encoded.token_ids)
    assert text == (
        "<|im_start|>user\n<|image|>And this?<|im_end|>\n<|im_start|>assistant\nNothing new.<|im_end|>"
    )
    learnt = [token for token, mask in zip(encoded.token_ids, encoded.loss_mask, strict=True) if mask]
    assert (
        RuntimeTokenizer(path, model.decoder.vocab_size, special).decode(learnt) == "Nothing new.<|im_end|>"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "puts no token behind an answer"),
        ("{{ messages[0]['content'] }}<|end|>", "drops, repeats or reorders media"),
        ("{{ messages|length }}" + CHAT_TEMPLATE, "writes what comes before an answer otherwise"),
        ("{{ 1 / 0 }}", "the chat template fails"),
        ("{% if %}", "no bundle could be made"),
    ],
)
def test_templates_that_cannot_be_learnt_are_refused(
    template: str, message: str, model: ModelConfig, tokenizer: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        ConversationEncoder(tokenizer, template, model).encode(conversation(TALK))


def test_token_ids_above_65535_are_kept(model: ModelConfig, tmp_path: Path, context: Any) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json", SPECIAL_TOKENS.tokens, first=199_000)
    ids = {name: 199_000 + index for index, name in enumerate(SPECIAL_TOKENS.tokens)}
    tokens = dataclasses.replace(
        model.tokens, bos=199_000, pad=199_000, eos=(199_000, ids["<|end|>"]), image=199_001, audio=199_002
    )
    decoder = dataclasses.replace(model.decoder, vocab_size=200_064)
    large = dataclasses.replace(model, decoder=decoder, tokens=tokens)
    own: TrainingContext = context(ConversationEncoder(path, CHAT_TEMPLATE, large))
    (own.data / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}, '
                                         '{"role": "assistant", "content": "b"}]}\n')  # fmt: skip
    (own.data / "text.jsonl").write_text('{"text": "ab <|end|>"}\n')
    talk, text = load_conversations("talk.jsonl", own), load_documents("text.jsonl", own)
    for sequences in (talk, text):
        token_ids, _ = sequences[0]
        assert token_ids.dtype == np.int32 and token_ids.min() >= 199_000
    assert talk[0][0].tolist() == [*own.encoder.encode(conversation(TALK_AB)).token_ids]
    runtime = RuntimeTokenizer(path, 200_064)
    assert text[0][0].tolist() == [*runtime.encode_content("ab <|end|>"), 199_000]  # a typed mark is text


TALK_AB = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
