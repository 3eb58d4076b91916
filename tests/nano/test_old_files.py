"""Files that earlier versions wrote keep working: a bundle of version 1, a conversation with it.

`conversation_version_1.phirt` was saved by phirt 0.1.0 before the runtime's rooms were laid out anew: one
question, its answer, and their keys and values.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import phirt

SAVED = Path(__file__).with_name("conversation_version_1.phirt")
GREEDY = phirt.GenerationConfig(max_new_tokens=12)


def test_a_conversation_of_the_first_version_goes_on_where_it_stopped(nano: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(SAVED, tmp_path / "saved.phirt"))
    chat = phirt.load(nano, threads=1).load_chat(path)
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[0].content == "Say hello."
    result = chat.send("And then?", config=GREEDY).result
    assert list(result.token_ids) == [44, 88, 622, 25]  # as the version that saved it went on
    assert result.usage.cached_tokens == 12
