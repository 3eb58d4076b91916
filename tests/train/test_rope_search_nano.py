"""The search for rotary factors on a real model: nano's decoder at four times the length that it was trained
at, on pages of Wikipedia.
"""

from __future__ import annotations

import numpy as np
import pytest
from nano_decoder import TRAINED, nano_decoder

import phirt
from phirt_export.model_scorer import ModelScorer
from phirt_quant.evaluation import BundleScorer
from phirt_quant.text_files import read_records
from phirt_train.rope_fitness import Passage, long_passages, passage_fitness, perplexity
from phirt_train.rope_search import SearchSettings, extended, search_long_factors


@pytest.fixture(scope="module")
def model(nano):
    return nano_decoder(nano)


@pytest.fixture
def pages(nano, shared_data) -> list[list[int]]:
    encode = phirt.load(nano).generator.tokenizer.encode_content
    records = read_records(shared_data / "text/wikipedia.val.jsonl.xz", limit=30)
    return [list(encode(f"{record['title']}\n\n{record['text']}")) for record in records]


def test_the_decoder_is_the_bundles(nano, model):
    ids = phirt.load(nano).generator.tokenizer.encode_content("The ferry leaves the harbour at seven.")
    bundle = np.stack([row.copy() for row in BundleScorer(phirt.load(nano)).score(ids, 1)])
    own = np.stack(list(ModelScorer(model, [0], 9999).score(ids, 1)))
    assert np.abs(bundle - own).max() < 0.5  # the bundle's kernels round activations to 8 bits
    assert np.abs(bundle - own).mean() < 0.05 < bundle.std()


def test_the_search_beats_yarn_at_four_times_the_length(model, pages):
    rope, length = model.config.decoder.rope, 4 * TRAINED
    documents = long_passages(pages, length, count=2)
    settings = SearchSettings(population=6, rounds=2, seed=0)
    found = search_long_factors(rope, length, passage_fitness(model, documents), settings)
    plain = perplexity(model, documents, extended(rope, length, (1.0,) * (rope.rotary_dim // 2)))
    at_home = perplexity(model, [Passage(page.token_ids[:TRAINED]) for page in documents])
    print(f"at {TRAINED}: {at_home:.2f}; at {length}: plain {plain:.2f}", end=", ")
    print(f"YaRN {found.first_fitness:.2f}, found {found.fitness:.2f}")
    assert found.fitness < found.first_fitness < plain
