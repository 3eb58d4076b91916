"""The commands of a session: their names, what stands behind them, what the help says.

Knows words. What a command does is the session's.
"""

from __future__ import annotations

from dataclasses import dataclass

ARGUMENTS = {"F": "a file name", "FOLDER": "a folder, or off", "JSON": "a JSON value"}


@dataclass(frozen=True)
class Command:
    """A word that begins with a slash. `argument` is one of `ARGUMENTS`, or empty when it takes none."""

    name: str
    argument: str
    help: str
    aliases: tuple[str, ...] = ()


COMMANDS = (
    Command("/image", "F", "attach a picture to the next message"),
    Command("/audio", "F", "attach a recording to the next message"),
    Command("/docs", "FOLDER", "answer from the documents in a folder; /docs off no more"),
    Command("/result", "JSON", "give what the called tools returned"),
    Command("/detach", "", "forget what is attached"),
    Command("/reset", "", "start the conversation again", ("/clear",)),
    Command("/save", "F", "write the conversation to a file"),
    Command("/load", "F", "go on with a saved conversation"),
    Command("/stats", "", "figures of the last answer"),
    Command("/help", "", "this list", ("/?", "?")),
    Command("/quit", "", "leave (Ctrl-D too; Ctrl-C stops an answer)", ("/exit", "/bye")),
)

BY_NAME = {command.name: command for command in COMMANDS}
NAMES = {spelling: command.name for command in COMMANDS for spelling in (command.name, *command.aliases)}
WORDS = tuple(spelling for spelling in NAMES if spelling.startswith("/"))
WITH_PATH = tuple(command.name for command in COMMANDS if command.argument in ("F", "FOLDER"))

_KEYS = (
    ("a file dropped here", "is attached, alone or within a message"),
    ("Alt-Enter, Ctrl-J", "begins a new line; so does Enter between triple quotes"),
    ('"""text"""', "is sent as it stands; //word sends /word"),
    ("Up, Ctrl-R", "earlier messages"),
)


def help_text() -> str:
    """What /help shows."""
    rows = [
        (" ".join((command.name, *command.aliases, command.argument)).rstrip(), command.help)
        for command in COMMANDS
    ]
    return "\n".join(f"  {left:<20} {right}" for left, right in (*rows, *_KEYS))
