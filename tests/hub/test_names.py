"""What is an id and what a path; what a snapshot in the hub's cache is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from phirt_export.hub import HubError, HubId, hub_id, published_name


@pytest.mark.parametrize(
    ("text", "repo", "file"),
    [
        ("microsoft/Phi-4-mini-instruct", "microsoft/Phi-4-mini-instruct", None),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", None),
        ("https://huggingface.co/Qwen/Qwen2.5-0.5B/", "Qwen/Qwen2.5-0.5B", None),
        ("hf://Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", None),
        ("a/b-GGUF/b-Q4_0.gguf", "a/b-GGUF", "b-Q4_0.gguf"),
        ("a/b-GGUF/Q4/b.gguf", "a/b-GGUF", "Q4/b.gguf"),
    ],
)
def test_ids(text: str, repo: str, file: str | None) -> None:
    assert hub_id(text) == HubId(repo, "main", file)
    assert hub_id(text, "v1") == HubId(repo, "v1", file)


@pytest.mark.parametrize(
    "text",
    [
        "nano", "./a/b", "../a/b", "/a/b", "a/b/c", "~/a", "a/..", "a/../b", "a//b", "a/.b", "-a/b", "a/b c",
        "a--b/c", "a\\b", "", "/", "a/b.gguf/", "https://example.org/a/b",
    ],
)  # fmt: skip
def test_paths(text: str) -> None:
    assert hub_id(text) is None


def test_a_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("some/model") == HubId("some/model")
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert hub_id("some/model") is None
    assert hub_id("hf://some/model") == HubId("some/model")


@pytest.mark.parametrize("revision", ["../x", "a//b", "", "/x", "a b", "-x", "x" * 201])
def test_revisions_that_are_none(revision: str) -> None:
    with pytest.raises(HubError, match="cannot be a revision"):
        HubId("some/model", revision)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/x/models--microsoft--Phi-4/snapshots/0123", "Phi-4"),
        ("/x/models--gpt2/snapshots/0123", "gpt2"),
        ("/x/models--a--b-GGUF/snapshots/0123/b-Q4_0.gguf", "b-Q4_0"),
        ("/x/some/model", "model"),
        ("/x/snapshots/model", "model"),
    ],
)
def test_names_of_checkpoints(place: str, name: str) -> None:
    assert published_name(Path(place)) == name
