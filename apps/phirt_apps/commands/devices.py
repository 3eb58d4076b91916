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
    from phirt.runtime.cpus import usable_cpus
    from phirt.runtime.device import CPU, devices
    from phirt_apps.machine import cores_and_threads, cpu_name

    out = Output()
    cpu, used = cpu_name(), [name for name, _ in CPU.providers]
    if json:
        facts = {"cpu": cpu, "cores": usable_cpus(), "threads": CPU.thread_count}
        out.json({**facts, "providers": list(devices()), "used": used})
        return
    table = plain_table("provider", "used by default")
    for name in devices():
        table.add_row(name, "yes" if name in used else "")
    out.table(table)
    out.answer(f"\ncpu: {cpu}, {cores_and_threads(None)}\n")
