"""`phirt verify`: whether a bundle's files are whole.

Knows the manifest's hashes and tables. Opens no graph: a damaged or foreign bundle can be looked at safely.
"""

from __future__ import annotations

from pathlib import Path

from phirt.errors import BundleError
from phirt_apps import options
from phirt_apps.models import bundle_folder
from phirt_apps.output import Output, one_line, plain_table

SUMMARY = "Check a bundle's files against its manifest."
SECTION = "Models"


def command(bundle: options.BundleArgument = None, json: options.Json = False) -> None:
    """Hashes every file of MODEL and compares it with the manifest. Exit status 1 when a file is bad.

    Without MODEL: the default one.

    \b
      phirt verify phi4-int4
    """
    verify(bundle_folder(bundle), Output(), as_json=json)


def verify(folder: Path, out: Output, *, as_json: bool) -> None:
    """Hashes every file and writes ok or bad for each. Raises BundleError when one is bad."""
    from phirt.bundle.files import verify_bundle

    with out.busy(f"hashing {folder.name}"):
        report = verify_bundle(folder)
    bad = [name for name, detail in report if detail != "ok"]
    if as_json:
        out.json({"ok": not bad, "files": dict(report)})
    else:
        table = plain_table("file", "state", "detail")
        for name, detail in report:
            good = detail == "ok"
            table.add_row(one_line(name), "ok" if good else "bad", "" if good else one_line(detail))
        out.table(table)
    if bad:
        raise BundleError(
            f"{len(bad)} of {len(report)} files are bad: {', '.join(bad)}; fetch or export them again"
        )
