"""The trained model in whole numbers, as an NPU computes it, by the CPU's kernels: how often it says the
same.
"""

from __future__ import annotations

import pytest
from nano_variants import variant_of

from phirt.generator import Generator
from phirt.runtime.session import SessionConfig


@pytest.mark.parametrize(("bundle", "least"), [("eight_bits", 0.98), ("four_bits", 0.95)])
def test_whole_numbers_say_what_the_cpus_graphs_say(request, held_out, bundle: str, least: float) -> None:
    """Teacher-forced, on texts, a picture and a recording that were not calibrated on."""
    folder = request.getfixturevalue(bundle)
    with_variant = Generator(variant_of(folder, "qnn"), SessionConfig())
    counts = [one.agreement(with_variant.new_engine()) for one in held_out]
    with_variant.close()
    assert sum(right for right, _ in counts) >= least * sum(all_ for _, all_ in counts)


def test_pictures_and_recordings_are_encoded_alike(eight_bits, held_out, nano) -> None:
    import numpy as np

    with_variant = Generator(variant_of(eight_bits, "qnn"), SessionConfig())
    for one in held_out[-2:]:
        (span,) = one.prompt.spans
        name = one.prompt.adapter.name
        kind = {"vision": "image", "speech": "audio"}[name]
        from nano_variants import EXAMPLES

        source = EXAMPLES / {"image": "shapes.png", "audio": "seven.flac"}[kind]
        media = with_variant.encoder.prepare(kind, source)
        rule = next(rule for rule in with_variant.manifest.rules if rule.adapter == name)
        found = with_variant.encoder.features(media, rule)
        assert np.corrcoef(found.reshape(-1), span.features.reshape(-1))[0, 1] > 0.998
    with_variant.close()
