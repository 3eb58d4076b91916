"""Whether the library for apps reads a tokenizer.json.

Knows what that library takes, as `apps/native/src/tokenizer.cc` does: byte-level BPE, cut by patterns,
without a normalizer. It refuses the same files itself; here they are refused before the work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phirt.errors import ConfigError

_STEPS = ("Sequence", "Split", "Digits", "ByteLevel")
_REMEDY = "export for cpu and use phirt's server"


def require_host_tokenizer(path: Path) -> None:
    """Raises ConfigError for a tokenizer.json that no app could read."""
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    model = document["model"]
    steps = list(_steps(document.get("pre_tokenizer")))
    problem = None
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        fallback = " with byte fallback" if model.get("byte_fallback") else ""
        problem = f"its model is {model.get('type', 'BPE')}{fallback}"
    elif document.get("normalizer"):
        problem = f"it has a normalizer, {document['normalizer'].get('type')}"
    elif strange := [step.get("type") for step in steps if step.get("type") not in _STEPS]:
        problem = f"its pre-tokenizer has the step {strange[0]}"
    elif not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        problem = "its pre-tokenizer does not end in ByteLevel without a space before the first word"
    if problem is not None:
        raise ConfigError(
            f"{path.name} cannot be read in apps: {problem}; accepted: a byte-level BPE without a "
            f"normalizer; {_REMEDY}"
        )


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    if not isinstance(pre_tokenizer, dict):
        return []
    if pre_tokenizer.get("type") != "Sequence":
        return [pre_tokenizer]
    return [step for one in pre_tokenizer["pretokenizers"] for step in _steps(one)]
