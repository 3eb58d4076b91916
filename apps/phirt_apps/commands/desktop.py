"""`phirt desktop`: a window for conversations with a model.

Knows its options. What the window does is in the folder `desktop`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phirt_apps import options
from phirt_apps.extras import needs_extra

SUMMARY = "Open a window for conversations with a model."
SECTION = "Use a model"


def command(
    bundle: options.Bundle = None,
    conversations: Annotated[
        Path | None,
        typer.Option(
            "--conversations",
            metavar="FOLDER",
            help="Where conversations are kept. Default: a folder among this user's data.",
        ),
    ] = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = 2048,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
) -> None:
    """Opens a window: type, drop pictures and recordings, or record, and read the answer as it comes.

    Everything is computed on this machine. Conversations are kept, each in a file of its own, and can be gone
    on with or deleted in the list on the left; 'phirt chat --conversation FILE' takes the same files. Needs
    the extra desktop.

    \b
      phirt desktop
      phirt desktop -m phi4 --system "Answer briefly."
    """
    from phirt_apps.arguments import generation_settings, valid_text

    with needs_extra("desktop"):
        from phirt_apps.desktop.app import run
    from phirt_apps.desktop.conversations import default_folder, prepare
    from phirt_apps.desktop.worker import Setup
    from phirt_apps.home import expand_home
    from phirt_apps.models import bundle_folder

    settings = generation_settings(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    folder = default_folder() if conversations is None else expand_home(conversations)
    prepare(folder)
    bundle_folder(bundle)  # a wrong name is wrong usage, before a window opens
    text = None if system is None else valid_text(system)
    run(Setup(folder, settings, text, provider, threads), bundle)
