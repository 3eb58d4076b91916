"""llama.cpp's part of `llama_quantizers.py`, in an environment that needs `llama-cpp-python` and numpy alone.

    python llama_quantizers_worker.py quantize SOURCE TARGET Q4_K_M [IMPORTANCE.npz]
    python llama_quantizers_worker.py logits MODEL THREADS

`quantize` is `llama_model_quantize` at its defaults; IMPORTANCE has the mean squared inputs of matrices under
llama.cpp's names. `logits` reads lines with a JSON list of ids each, and answers with the raw float32 logits
of all its places: a sequence of its own, no start token, keys and values in float32.
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp as lib
import numpy as np

_FLOAT32 = 0  # GGML_TYPE_F32
_CONTEXT = 2048


def quantize(source: str, target: str, kind: str, importance: str | None = None) -> None:
    """Write SOURCE in another type."""
    params = lib.llama_model_quantize_default_params()
    params.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 1
    kept = []  # ctypes holds no reference to what it points to
    if importance is not None:
        with np.load(importance) as archive:
            entries = {name: np.ascontiguousarray(archive[name], np.float32) for name in archive.files}
        table = (lib.llama_model_imatrix_data * (len(entries) + 1))()  # the last one, without a name, ends it
        for entry, (name, values) in zip(table, entries.items(), strict=False):
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        kept = [entries, table]
        params.imatrix = table
    status = lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    del kept
    if status:
        raise SystemExit(f"llama_model_quantize failed with status {status}")


def logits(path: str, threads: str) -> None:
    """Answer each line of ids until there are no more."""
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = _CONTEXT
    params.n_threads = params.n_threads_batch = int(threads)
    params.type_k = params.type_v = _FLOAT32
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp cannot make a context")
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    for line in sys.stdin:
        ids = json.loads(line)
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if status := lib.llama_decode(context, batch):
            raise SystemExit(f"llama_decode failed with status {status}")
        lib.llama_batch_free(batch)
        rows = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(ids), vocabulary))
        sys.stdout.buffer.write(rows.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    lib.llama_backend_init()
    {"quantize": quantize, "logits": logits}[sys.argv[1]](*sys.argv[2:])
