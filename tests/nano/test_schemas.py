"""A hundred schemas of the kinds that people use, on a trained model: every answer is valid.

They follow the keywords in the order of the JSON Schema test suite, the examples of json-schema.org, tools of
assistants, and the structured answers of published guides. Whether an answer is valid, jsonschema says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

import phirt

CASES = [
    json.loads(line) for line in Path(__file__).with_name("schemas.jsonl").read_text("utf-8").splitlines()
]


@pytest.fixture(scope="module")
def model(nano: Path) -> Iterator[phirt.Model]:
    with phirt.load(nano, threads=1) as loaded:
        yield loaded


def test_there_are_a_hundred() -> None:
    assert len({case["name"] for case in CASES}) == 100


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 1}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_every_answer_is_valid(model: phirt.Model, case: dict, settings: dict) -> None:
    schema = case["schema"]
    result = model.chat().send("Tell me.", schema=schema, max_new_tokens=400, **settings).result
    assert result.finish_reason == "stop"
    jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema).validate(
        result.json()
    )
