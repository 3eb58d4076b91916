"""`phirt serve`: a server on this machine that speaks OpenAI's protocol.

Knows its options. What a server does is in the folder `server`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from phirt.errors import ConfigError
from phirt_apps import options
from phirt_apps.errors import UsageError
from phirt_apps.extras import needs_extra
from phirt_apps.interrupts import interrupts
from phirt_apps.output import Output

SUMMARY = "Answer other programs over OpenAI's protocol."
SECTION = "Use a model"

_KEY_VARIABLE = "PHIRT_API_KEY"
_MAX_KEY_BYTES = 10_000


def command(
    bundle: options.Bundle = None,
    embedder: Annotated[
        Path | None,
        typer.Option(
            "--embedder",
            metavar="MODEL",
            autocompletion=options.names,
            help="Embedding model for /v1/embeddings.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="NAME", help="Where to listen; beyond this machine a key is needed."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port; 0 is any that is free.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="File with the key that clients must send. Default: the variable PHIRT_API_KEY, or none.",
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, metavar="N", help="Requests that are answered at once.")
    ] = 4,
    queue: Annotated[
        int,
        typer.Option("--queue", min=0, metavar="N", help="Requests that may wait; more are refused (429)."),
    ] = 32,
    longest: Annotated[
        int, typer.Option("--max-new-tokens", min=1, metavar="N", help="Longest answer, in tokens.")
    ] = 4096,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, metavar="MB", help="Largest request, in megabytes.")
    ] = 32,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A name by which clients call the server, beside localhost and addresses. May be repeated.",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="Web pages whose scripts may ask, as in https://example.org. May be repeated.",
        ),
    ] = None,
    stop_seconds: Annotated[
        float,
        typer.Option(
            "--stop-seconds", min=0.0, metavar="SECONDS", help="Time for open answers to end after Ctrl-C."
        ),
    ] = 5.0,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="A line on stderr for each request: address and status.")
    ] = False,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Serves a model at http://127.0.0.1:8000/v1, for programs that speak OpenAI's protocol.

    Chat with images, recordings, tools and JSON schemas, responses, transcriptions, embeddings, /v1/models,
    /health and /metrics (Prometheus). Nobody but this machine can reach it, unless --host says otherwise.
    Media come inside of requests: addresses are never opened. Nothing is kept or logged of what is said.
    Ctrl-C lets answers come to their end; a second one does not wait. Needs the extra serve.

    \b
      phirt serve
      phirt serve -m phi4 --port 8080 --parallel 2
      phirt serve --embedder minilm
      phirt serve --host 0.0.0.0 --api-key-file key.txt --allow-host box.local
      curl http://127.0.0.1:8000/v1/models
    """
    with needs_extra("serve"):
        from phirt_apps.server.run import Process, address_of, bind, serve
        from phirt_apps.server.serving import Serving
        from phirt_apps.server.settings import MEGABYTE, ServerSettings
    from phirt_apps.models import bundle_folder, load

    out, key = Output(), _key(api_key_file)
    try:
        settings = ServerSettings(
            host=host,
            port=port,
            api_key=key,
            parallel=parallel,
            queue=queue,
            max_new_tokens=longest,
            max_body_bytes=max_body * MEGABYTE,
            allowed_hosts=tuple(allow_host or ()),
            allowed_origins=tuple(allow_origin or ()),
            stop_seconds=stop_seconds,
        )
    except ConfigError as error:
        raise UsageError(str(error)) from error
    with bind(settings) as listening:
        import phirt

        model = load(bundle, out, provider, threads)
        vectors = None if embedder is None else phirt.Embedder(bundle_folder(embedder), threads=threads)
        aliases = {str(bundle): model.manifest.name} if bundle is not None else {}
        if vectors is not None:
            aliases[str(embedder)] = vectors.manifest.name
        serving = Serving(settings, model, vectors, aliases)
        process = Process(serving, out.hint if access_log else None)
        names = ", ".join(serving.model_names)
        out.notice(f"serving {names} at {address_of(listening)}/v1 (Ctrl-C stops)")
        with interrupts.patient(), interrupts.cancelling(process.stop):
            serve(process, listening)
        serving.close()


def _key(path: Path | None) -> str | None:
    """The key that clients must send."""
    from phirt_apps.text_files import read_text_file

    if path is not None:
        return read_text_file(path, "the key", _MAX_KEY_BYTES).strip()
    return os.environ.get(_KEY_VARIABLE) or None
