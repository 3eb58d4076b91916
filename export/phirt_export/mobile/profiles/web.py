"""Browsers, Node and Electron: onnxruntime-web by WebAssembly or WebGPU, onnxruntime-node. WebAssembly has an
address space of 4 GB in all, whatever the machine has, and an array of a browser at most 2 GB.
"""

from __future__ import annotations

from phirt_export.mobile.profile import MobileProfile

PROFILE = MobileProfile(
    name="web",
    title="browsers and Node",
    memory_share=0.4,
    library="onnxruntime-web or onnxruntime-node 1.30 or newer",
    driver="phirt's host for JavaScript (`apps/web` of phirt's repository)",
    guide="Serve this folder beside the page, or pick it there; in Node, `openFolder` takes its path. A page "
    "keeps the files in the browser's own storage, so that only the first visit fetches them.",
    memory_limit=4 << 30,
    max_file_bytes=2_000_000_000,
)
