"""Decoders as transformers' config.json describes them: sizes, special tokens, and the names of projections.

Knows the keys that families share. One block serves all of them; they differ in fused or separate
projections, biases, query and key norms, rotary scaling and the head. Values that a class of transformers
would fill in differ between families, so what changes a shape must be in config.json.
"""

from __future__ import annotations

from collections.abc import Callable

from phirt.errors import ConfigError
from phirt.fields import Fields
from phirt_export.chat_files import special_tokens, token_id
from phirt_export.containers import read_json
from phirt_export.published.layout import Layout, Part, Published
from phirt_export.published.rope import read_rope
from phirt_export.reference.config import DecoderConfig, ModelConfig, Projection, TokenConfig

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_MAX_VOCABULARY = 1 << 22
_ROTARY_BUFFER = "rotary_emb.inv_freq"


def read_decoder(
    published: Published,
    biases: tuple[Projection, ...] = (),
    qk_norm: bool = False,
    window: int | None = None,
) -> DecoderConfig:
    """The decoder that a published configuration describes.

    Raises:
        ConfigError: a size is missing or out of range, or the activation is another than silu.
    """
    config = published.config
    if (activation := config.text("hidden_act", "silu")) not in ("silu", "swish"):
        raise config.refusal(f"'hidden_act' is {activation[:80]!r}, accepted: 'silu'")
    hidden, heads = config.integer("hidden_size", 1, 1 << 17), config.integer("num_attention_heads", 1, 1024)
    head_dim = config.optional_integer("head_dim", 1, 1024)
    if head_dim is None:
        if hidden % heads:
            raise config.refusal(f"'hidden_size' {hidden} is no multiple of 'num_attention_heads' {heads}")
        head_dim = hidden // heads
    rope = read_rope(config, head_dim)
    kv_heads = config.optional_integer("num_key_value_heads", 1, 1024)
    return DecoderConfig(
        num_layers=config.integer("num_hidden_layers", 1, 1024),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("intermediate_size", 1, 1 << 20),
        vocab_size=config.integer("vocab_size", 2, _MAX_VOCABULARY),
        norm_eps=config.number("rms_norm_eps", 1e-12, 1e-2),
        rope=rope,
        biases=biases,
        qk_norm=qk_norm,
        tied=_is_tied(published),
        sliding_window=None if window is None or window >= rope.context else window,
    )


def _is_tied(published: Published) -> bool:
    """Whether the head is the embedding table. A stored head is used, whatever the flag says: a copy of the
    table is none of `shapes`. Without one, the flag must not deny it; it is left out where it is a class's
    default.
    """
    config = published.config
    if HEAD in published.shapes:
        flag(config, "tie_word_embeddings")
        return False
    if not flag(config, "tie_word_embeddings", True):
        raise ConfigError(
            f"{published.folder}: 'tie_word_embeddings' is false, but the head is missing: {HEAD} is not "
            "stored; fetch its file, or set the flag to true if the head is the embedding table"
        )
    return True


def read_tokens(
    published: Published, vocab_size: int, image: int | None = None, audio: int | None = None
) -> TokenConfig:
    """Special ids: of generation_config.json where it has them, else of config.json, and the tokenizer's own
    end. Ids past the vocabulary or below 0 stand for none.
    """
    places = [published.config]
    if (path := published.folder / "generation_config.json").is_file():
        places.insert(0, read_json(path, "fetch the checkpoint's own generation_config.json"))

    eos = [token for token in _ids(places, "eos_token_id") if token < vocab_size]
    turn_end = token_id(published.folder, special_tokens(published.folder).get("eos_token"))
    # Chat fine-tunes at times say only there what ends a turn.
    if turn_end is not None and turn_end < vocab_size and turn_end not in eos:
        eos.append(turn_end)
    if not eos:
        raise published.config.refusal(
            f"'eos_token_id' names no token from 0 to {vocab_size - 1}, so no answer would end"
        )
    # Neither is needed where it is not there: templates have names of their own, and nothing is padded.
    bos, pad = (
        next((token for token in _ids(places, key) if token < vocab_size), eos[0])
        for key in ("bos_token_id", "pad_token_id")
    )
    return TokenConfig(bos=bos, pad=pad, eos=tuple(eos), image=image, audio=audio)


def _ids(places: list[Fields], key: str) -> tuple[int, ...]:
    """What the first file that has the key says: one id or several, without those that stand for none."""
    place = next((fields for fields in places if fields.has(key)), None)
    if place is None:
        return ()
    listed = place.raw(key)
    if isinstance(listed, list):
        if not listed:
            raise place.refusal(f"{key!r} is an empty list")
        ids = place.integers(key, -_MAX_VOCABULARY, _MAX_VOCABULARY, 64)
    else:
        ids = (place.integer(key, -_MAX_VOCABULARY, _MAX_VOCABULARY),)
    return tuple(token for token in ids if token >= 0)


def flag(config: Fields, key: str, default: bool = False) -> bool:
    """A boolean of the configuration; `default` where it is null or absent."""
    value = config.raw(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise config.refusal(f"{key!r} is {value!r:.80}, expected true or false")
    return value


def fused_parts(name: str) -> tuple[Part, ...]:
    """Names of fused projections: the reference model's without the layer in between."""
    return (Part(name.replace(".base_layer.", ".")),)


def is_idle(decoder: DecoderConfig) -> Callable[[str], bool]:
    """Which stored tensors a decoder does without: frequencies that are computed, a copy of a tied head."""
    return lambda name: name.endswith(_ROTARY_BUFFER) or (decoder.tied and name == HEAD)


def text_layout(
    published: Published, decoder: DecoderConfig, parts: Callable[[str], tuple[Part, ...]]
) -> Layout:
    """The layout of a model without media; `parts` names what makes up each tensor."""
    tokens = read_tokens(published, decoder.vocab_size)
    config = ModelConfig(decoder=decoder, tokens=tokens, vision=None, audio=None, adapters={})
    return Layout(config, parts, is_idle(decoder))


def separate_parts(decoder: DecoderConfig) -> Callable[[str], tuple[Part, ...]]:
    """Names of projections that are published one by one: query, key and value; gate and up."""

    def parts(name: str) -> tuple[Part, ...]:
        (plain,) = fused_parts(name)
        for fused, separate in decoder.fused_rows.items():
            if f".{fused}." in name:
                return tuple(
                    Part(plain.name.replace(f".{fused}.", f".{one}."), count)
                    for one, count in separate.items()
                )
        return (plain,)

    return parts


def sliding_window(config: Fields, absent: int | None = None) -> int | None:
    """Positions that attention looks back on; None where it sees all."""
    if "sliding_window" not in config:
        return absent
    return config.optional_integer("sliding_window", 1)


def refuse_partial_window(config: Fields) -> None:
    """Qwen's window holds for some layers only."""
    if flag(config, "use_sliding_window"):
        raise config.refusal(
            "'use_sliding_window' is true, which is not supported: its window holds for some layers only; "
            "accepted: false"
        )
