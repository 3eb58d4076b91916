"""`phirt devices`: what can compute on this machine, what is missing for more, and what a bundle would use.

Knows its options and tables. What there is, `machine` and the runtime know; which graphs a provider runs, the
bundle's manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phirt.errors import BundleError, PhirtError
from phirt_apps import options
from phirt_apps.models import bundle_folder
from phirt_apps.output import Output, one_line, plain_table
from phirt_apps.settings import load_settings

if TYPE_CHECKING:
    from phirt.bundle.manifest import Manifest
    from phirt.runtime.offers import Offer

SUMMARY = "List what can compute here, and what a model would use."
SECTION = "This machine"


def command(shown: options.Bundle = None, json: options.Json = False) -> None:
    """Lists what can compute on this machine, what could be installed for more, and which graphs of a model
    each of it would run.

    Without --provider the CPU is used. A provider that is named and not there is an error.

    \b
      phirt devices
      phirt devices -m my-bundle --json
    """
    from phirt.bundle.files import load_manifest
    from phirt.runtime.cpus import usable_cpus
    from phirt.runtime.device import CPU, devices
    from phirt.runtime.offers import offers
    from phirt_apps.machine import cores_and_threads, cpu_name, instruction_sets, products

    out = Output()
    with out.busy("asking what is there"):
        found, manifest = offers(), load_manifest(bundle_folder(shown or _default(out)))
    cpu, used = cpu_name(), [name for name, _ in CPU.providers]
    choices = [_choice(manifest, offer) for offer in found]
    if json:
        facts = {
            "cpu": cpu,
            "instructions": instruction_sets(),
            "products": products(),
            "cores": usable_cpus(),
            "threads": CPU.thread_count,
        }
        listed = [_as_object(offer) for offer in found]
        bundle = {"name": manifest.name, "graphs": choices}
        out.json({**facts, "providers": list(devices()), "used": used, "offers": listed, "bundle": bundle})
        return
    table = plain_table("provider", "for", "here", f"graphs of {one_line(manifest.name)}")
    for offer, choice in zip(found, choices, strict=True):
        state = ", ".join(offer.devices) if offer.usable and offer.devices else offer.state
        named = f"{choice['variant']}: " if choice["variant"] else ""
        graphs = one_line(f"{named}{choice['reason']}") if offer.usable else ""
        table.add_row(offer.provider, offer.purpose, one_line(state), graphs)
    out.table(table)
    out.answer(f"\ncpu: {cpu}, {cores_and_threads(None)}\n")
    sets = ", ".join(instruction_sets()) or "not known here"
    out.answer(f"instruction sets: {sets}; products of quantized weights by {products()}\n")
    out.answer(f"used without --provider: {used[0]}\n")
    for offer in found:
        if offer.install is not None:
            out.answer(f"for {offer.provider}: {offer.install}\n")


def _default(out: Output) -> Path | None:
    """The user's default model. Where the file of defaults is wrong, this command shows all else."""
    try:
        model = load_settings().model
    except PhirtError as error:
        out.notice(one_line(str(error)))
        return None
    return None if model is None else Path(model)


def _choice(manifest: Manifest, offer: Offer) -> dict[str, Any]:
    """Which graphs of the bundle a provider would run, and why these or none."""
    from phirt.bundle.variants import variant_for

    entry: dict[str, Any] = {"provider": offer.provider, "variant": None, "runs": False}
    try:
        name = variant_for(manifest, offer.provider)
    except BundleError as error:
        return {**entry, "reason": str(error)}
    if name is not None:
        variant = manifest.variants[name]
        sizes = "" if variant.static is None else f", a window of {variant.static.window} positions"
        return {**entry, "variant": name, "runs": offer.usable, "reason": f"made for it{sizes}"}
    if offer.provider == "CPUExecutionProvider":
        return {**entry, "variant": "cpu", "runs": True, "reason": "made for it"}
    reason = "the graphs for the CPU; what it has no kernel for stays there"
    return {**entry, "runs": offer.usable, "reason": reason}


def _as_object(offer: Offer) -> dict[str, Any]:
    return {
        "provider": offer.provider,
        "purpose": offer.purpose,
        "usable": offer.usable,
        "state": offer.state,
        "devices": list(offer.devices),
        "install": offer.install,
    }
