"""Decoders of every family: transformers, the reference and the exported bundle say the same."""

from __future__ import annotations

import numpy as np
import pytest
from three_ways import open_three_ways

pytest.importorskip("transformers", reason="transformers has the published models")


def text(count: int, seed: int = 0) -> list[int]:
    """Ordinary ids."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, 330, count)]


@pytest.mark.parametrize(
    "family",
    [
        "phi-4-mini",  # partial rotary, tied, and 64 steps that cross the original context of 48
        "phi-3-mini",  # every query its own key, untied, a sliding window of 20
        "phi-4",  # full rotary, untied
        "llama",  # llama3 scaling, tied
        "llama-biased",  # linear scaling, biases of all projections
        "mistral",  # one key head, a head of another width than hidden / heads, a window of 24
        "qwen2",  # biases of query, key and value, YaRN
        "qwen3",  # norms of queries and keys
    ],
)
def test_64_greedy_steps_are_those_of_transformers(tmp_path, ranks, family):
    open_three_ways(tmp_path, family, ranks).assert_equal(text(30))


def test_magnitudes_of_yarn_that_a_configuration_sets_are_those_of_transformers(tmp_path, ranks):
    scaling = {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 16.0,
        "beta_slow": 2.0, "attention_factor": 1.3,
    }  # fmt: skip
    open_three_ways(tmp_path, "qwen2", ranks, changes={"rope_scaling": scaling}).assert_equal(text(30))


def test_configurations_of_transformers_5_nest_the_rotary_base(tmp_path, ranks):
    nested = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rope_theta": None}
    ways = open_three_ways(tmp_path, "qwen3", ranks, changes=nested)
    assert ways.reference.config.decoder.rope.theta == 5000.0
    ways.assert_equal(text(30))
