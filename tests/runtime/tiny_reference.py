"""The tiny decoder once more in plain numpy, whole sequence at once: what the engine is compared with."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from tiny_bundle import Tiny, rotary_caches


def forward(folder, ids, features=None, route: int = 0, tiny: Tiny | None = None) -> np.ndarray:
    """Logits float32 [T, vocab] of the whole sequence."""
    t = tiny or Tiny()
    model = onnx.load(folder / "decoder.onnx")
    w = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}
    ids = np.asarray(ids)
    x = w["embedding"][ids].copy()
    media = np.isin(ids, (1, 2))
    if media.any():
        x[media] = features
    regime = "long" if len(ids) > t.original_context else "short"
    caches = rotary_caches(t)
    cos, sin = caches[f"cos_{regime}"][: len(ids)], caches[f"sin_{regime}"][: len(ids)]
    for layer in range(t.layers):
        h = _norm(x)
        qkv = h @ w[f"qkv{layer}"] + h @ w[f"a{layer}"][route] @ w[f"b{layer}"][route]
        q, k, v = np.split(qkv, [t.heads * t.head_dim, (t.heads + t.kv_heads) * t.head_dim], axis=-1)
        q, k, v = (part.reshape(len(ids), -1, t.head_dim).transpose(1, 0, 2) for part in (q, k, v))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (np.repeat(part, t.heads // t.kv_heads, axis=0) for part in (k, v))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(t.head_dim)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + mixed.transpose(1, 0, 2).reshape(len(ids), -1) @ w[f"o{layer}"]
        x = x + np.maximum(_norm(x) @ w[f"up{layer}"], 0) @ w[f"down{layer}"]
    return (_norm(x) @ w["head"]).astype(np.float32)


def greedy(folder, ids, steps: int, features=None, route: int = 0, tiny: Tiny | None = None) -> list[int]:
    """The ids that greedy decoding adds, without a cache; placeholders are never chosen."""
    ids = list(ids)
    for _ in range(steps):
        logits = forward(folder, ids, features, route, tiny)[-1]
        logits[[1, 2]] = -np.inf
        ids.append(int(np.argmax(logits)))
    return ids[len(ids) - steps :]


def _norm(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Half-split rotary embedding of the first 2*cos.shape[1] dimensions of [heads, T, head_dim]."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
