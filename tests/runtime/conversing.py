"""What several tests of conversations use."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np

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


def rewritten(source, target, *, document=None, arrays=None, compression=zipfile.ZIP_STORED):
    """A copy of a saved conversation with parts changed: `document` edits the JSON, `arrays` maps names
    to bytes or None.
    """
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "conversation.json" and document:
                content = json.loads(data)
                document(content)
                data = json.dumps(content).encode()
            if arrays and name in arrays:
                if arrays[name] is None:
                    continue
                data = arrays[name]
            new.writestr(name, data)
        for name, data in (arrays or {}).items():
            if data is not None and name not in old.namelist():
                new.writestr(name, data)
    return target


def npy(array, **options) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()
