"""The sources of apps/web: types, style, and what is and is not in the repository."""

from __future__ import annotations

import json
import re
import subprocess

from web_host import WEB, modules


def _run(program: str, *words: str) -> str:
    done = subprocess.run(
        [modules() / ".bin" / program, *words], cwd=WEB, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_style() -> None:
    _run("biome", "ci", "--diagnostic-level=info", ".")


def test_the_lock_names_no_registry() -> None:
    text = (WEB / "package-lock.json").read_text("utf-8")
    assert "resolved" not in text and "://" not in re.sub(r'"url": "[^"]*"', "", text)
    locked = json.loads(text)["packages"]
    for name, version in json.loads((WEB / "package.json").read_text("utf-8"))["devDependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == version


def test_the_policy_is_the_same_in_page_and_server() -> None:
    (page,) = re.findall(r'Policy" content="([^"]*)"', (WEB / "index.html").read_text("utf-8"))
    server = "".join(
        re.findall(r'^ *"(.*?)"[ +;]*$', _policy_of((WEB / "src/node/serve.ts").read_text()), re.M)
    )
    assert server == f"{page}; frame-ancestors 'none'"
    assert "http" not in page and "*" not in page


def _policy_of(source: str) -> str:
    return source[source.index("const POLICY") : source.index("const HEADERS")]


def test_no_file_of_the_host_names_a_runtime() -> None:
    """Which onnxruntime runs is handed in; only types of the common interface are imported."""
    for path in (WEB / "src" / "host").glob("*.ts"):
        source = path.read_text("utf-8")
        for module in re.findall(r'^(?:import|export|\}).* from "([^"]+)";$', source, re.M):
            assert module.startswith("./") or module == "onnxruntime-common", path
        assert not re.search(r'^import (?!type).*"onnxruntime-common"', source, re.M), path
        assert not re.search(r"\b(document|window|navigator|process)\.\w", source), path
        assert len(source.splitlines()) <= 400, path
