"""Which adapter a conversation takes, and which projector its media take beside it: the manifest's rules.

Knows rules, adapters and projectors by name. Knows nothing of weights, media contents or caches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from phirt.bundle.manifest import NO_ADAPTER, Manifest, Modality, Rule
from phirt.errors import BundleError

_WORDS: Mapping[Modality, str] = {"image": "images", "audio": "audio"}


def choose_rule(manifest: Manifest, modalities: Collection[Modality]) -> Rule:
    """The rule for a conversation with media of these modalities.

    Raises BundleError where the bundle has no encoder for one of them.
    """
    for modality in modalities:
        encoder_name(manifest, modality)
    return first_fitting(manifest.rules, modalities)


def first_fitting(rules: Iterable[Rule], modalities: Collection[Modality]) -> Rule:
    """The first rule whose modalities are all there; one without any fits always."""
    return next(rule for rule in rules if set(rule.modalities) <= set(modalities))


def adapter_name(rule: Rule) -> str:
    """The name of the rule's adapter; "none" for the base weights alone."""
    return NO_ADAPTER if rule.adapter is None else rule.adapter


def adapter_id(manifest: Manifest, name: str) -> int:
    """What the decoder's input `route` takes for an adapter of the bundle, or for "none"."""
    return 0 if name == NO_ADAPTER else manifest.adapters[name].id


def encoder_name(manifest: Manifest, modality: Modality) -> str:
    """The encoder that takes this modality. Raises BundleError where there is none."""
    for name, encoder in manifest.encoders.items():
        if encoder.modality == modality:
            return name
    accepted = ", ".join(["text", *(_WORDS[one] for one in manifest.modalities)])
    raise BundleError(
        f"the bundle {manifest.name!r} takes no {_WORDS[modality]}, accepted: {accepted}; use a bundle that "
        "was exported with an encoder for them"
    )


def projector_index(manifest: Manifest, encoder: str, rule: Rule) -> int:
    """Which of the encoder's projectors the rule picks; the first where there is no choice."""
    names = manifest.encoders[encoder].projectors
    return names.index(rule.projectors[encoder]) if encoder in rule.projectors else 0
