"""What several tests of conversations use."""

from __future__ import annotations

from phirt import GenerationConfig
from phirt.generate.sampling import TokenSampler

SHORT = GenerationConfig(max_new_tokens=8)


def fresh(model, chat) -> list[int]:
    """The greedy ids for a chat's last question, from a conversation without any cache."""
    prompt = model.generator.encode_prompt(chat.messages[:-1], chat.system, chat.tools)
    chooser = TokenSampler(SHORT, 512, prompt.ids.tolist(), (1, 2))
    return list(model.generator.new_engine().generate(prompt, chooser, max_new_tokens=8, eos=(0, 4)))


def scripted(ids, reason):
    """In place of `Engine.generate`: these tokens, then the reason to end."""
    yield from ids
    return reason


def engine_of(chat):
    """The engine that a chat used last; it must not be answering."""
    return chat.generator.pool.engines(chat._owner)[-1]
