"""`phirt devices`: what can compute on this machine, and which of it a request would use.

Knows its options and tables. What there is, `machine` and the runtime know.
"""

from __future__ import annotations

from phirt_apps import options
from phirt_apps.output import Output, plain_table

SUMMARY = "List what can compute here."
SECTION = "This machine"


def command(json: options.Json = False) -> None:
    """Lists what can compute on this machine, and which of it would be used.

    \b
      phirt devices
    """
    from phirt.runtime import session
    from phirt_apps.machine import cpu_name, usable_cores

    out = Output()
    used = session.resolve_providers(None)
    cpu, cores = cpu_name(), usable_cores()
    if json:
        out.json({"cpu": cpu, "cores": cores, "providers": list(session.devices()), "used": list(used)})
        return
    table = plain_table("provider", "used by default")
    for name in session.devices():
        table.add_row(name, "yes" if name in used else "")
    out.table(table)
    out.answer(f"\ncpu: {cpu}, {cores} logical cores usable\n")
