"""A published checkpoint is fetched as far as it is missing, checked, and kept in the hub's own layout."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import os
import shutil
from pathlib import Path

import hub_server
import pytest
from hub_server import COMMIT, Fault, Hub

from phirt_export import hub as hub_of
from phirt_export.hub import HubError, HubId, Patience, Plan, Step

AT_ONCE = Patience(tries=3, first=0.0, timeout=10.0)
SHARD = "model-00002-of-00002.safetensors"
FIRST = "model-00001-of-00002.safetensors"


@dataclasses.dataclass
class Told:
    """An observer that remembers."""

    asked: list[str] = dataclasses.field(default_factory=list)
    plans: list[Plan] = dataclasses.field(default_factory=list)
    steps: list[Step] = dataclasses.field(default_factory=list)
    waited: list[tuple[str, float]] = dataclasses.field(default_factory=list)

    def asks(self, of: HubId, endpoint: str) -> None:
        self.asked.append(f"{of} {endpoint}")

    def fetches(self, plan: Plan) -> None:
        self.plans.append(plan)

    def arrives(self, step: Step) -> None:
        self.steps.append(step)

    def waits(self, why: str, seconds: float) -> None:
        self.waited.append((why, seconds))


def fetch(
    text: str = "some/model", revision: str | None = None, token: str | None = None
) -> tuple[Path, Told]:
    told = Told()
    of = hub_of.hub_id(text, revision)
    assert of is not None
    return hub_of.fetch(of, told, token, AT_ONCE), told


def test_what_an_export_needs_comes_and_nothing_else(hub: Hub, cache: Path, checkpoint: Path) -> None:
    folder, told = fetch()
    assert folder == cache / "snapshots" / COMMIT
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in checkpoint.iterdir()
    }
    assert (cache / "refs" / "main").read_text() == COMMIT
    total = sum(p.stat().st_size for p in checkpoint.iterdir())
    assert told.asked == [f"some/model {hub.endpoint}"]
    assert [(p.endpoint, p.files, p.total, p.folder) for p in told.plans] == [(hub.endpoint, 6, total, cache)]
    assert told.steps[-1].done == total
    assert not any(r.path.endswith((".bin", ".py", ".md", "consolidated.safetensors")) for r in hub.seen)


def test_the_cache_is_one_that_the_hubs_own_library_reads(hub: Hub, cache: Path) -> None:
    from huggingface_hub import scan_cache_dir, snapshot_download

    folder, _ = fetch("some/model", "v1")
    assert snapshot_download(
        "some/model", revision="v1", local_files_only=True, cache_dir=cache.parent
    ) == str(folder)
    (repo,) = scan_cache_dir(cache.parent).repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.commit_hash, revision.refs) == ("some/model", COMMIT, {"v1"})
    assert not scan_cache_dir(cache.parent).warnings


def test_what_is_whole_is_not_fetched_again(hub: Hub, cache: Path) -> None:
    fetch()
    hub.seen.clear()
    _, told = fetch()
    assert [r.path for r in hub.seen] == ["/api/models/some/model/revision/main"]
    assert told.plans[0].there == told.plans[0].total


def test_nothing_about_the_machine_is_sent(hub: Hub, cache: Path) -> None:
    fetch()
    assert all("torch" not in r.agent and "agent/" not in r.agent for r in hub.seen)
    assert any("phirt/" in r.agent for r in hub.seen)
    assert not any("telemetry" in r.path or "harness" in r.path for r in hub.seen)


def test_a_broken_connection_goes_on_where_it_broke(hub: Hub, cache: Path, checkpoint: Path) -> None:
    hub.faults = [
        Fault(f"/some/model/{SHARD}", cut=1000),
        Fault(f"/some/model/{SHARD}", cut=5),
    ]
    folder, told = fetch()
    assert (folder / SHARD).read_bytes() == (checkpoint / SHARD).read_bytes()
    ranges = [r.range for r in hub.seen if r.path == f"/some/model/{SHARD}"]
    assert ranges == [None, "bytes=1000-", "bytes=1005-"]
    assert [why for why, _ in told.waited] == ["the connection broke"] * 2


def test_a_partial_file_of_another_run_is_taken_up(hub: Hub, cache: Path, checkpoint: Path) -> None:
    content = (checkpoint / SHARD).read_bytes()
    blob = cache / "blobs" / hub_server.hashlib.sha256(content).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(content[:7000])
    folder, told = fetch()
    assert [r.range for r in hub.fetched(f"/some/model/{SHARD}")] == ["bytes=7000-"]
    assert (folder / SHARD).read_bytes() == content
    assert told.plans[0].there >= 7000


@pytest.mark.parametrize("wrong", [b"x" * 7000, b"y" * 10_000_000], ids=["another beginning", "too long"])
def test_a_partial_file_that_is_none_is_fetched_anew(
    hub: Hub, cache: Path, checkpoint: Path, wrong: bytes
) -> None:
    content = (checkpoint / SHARD).read_bytes()
    blob = cache / "blobs" / hub_server.hashlib.sha256(content).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(wrong)
    folder, _ = fetch()
    assert (folder / SHARD).read_bytes() == content


def test_a_server_without_ranges_sends_the_file_again(hub: Hub, cache: Path, checkpoint: Path) -> None:
    hub.faults = [Fault(f"/some/model/{SHARD}", cut=1000), Fault(f"/some/model/{SHARD}", ignores_range=True)]
    folder, _ = fetch()
    assert (folder / SHARD).read_bytes() == (checkpoint / SHARD).read_bytes()


def test_one_damaged_transfer_is_repeated(hub: Hub, cache: Path, checkpoint: Path) -> None:
    hub.faults = [Fault(f"/some/model/{SHARD}", flipped=True), Fault("config.json", flipped=True)]
    folder, _ = fetch()
    assert (folder / SHARD).read_bytes() == (checkpoint / SHARD).read_bytes()
    assert (folder / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()


@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_what_always_arrives_damaged_is_refused(hub: Hub, cache: Path, name: str) -> None:
    hub.faults = [Fault(f"/{name}", times=9, flipped=True)]
    with pytest.raises(
        HubError, match=rf"^{name} of some/model arrives damaged: .*checksum.*; try again later"
    ):
        fetch()
    assert not (cache / "snapshots" / COMMIT / name).exists()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_hub_is_asked_again(hub: Hub, cache: Path, status: int) -> None:
    hub.faults = [
        Fault("/revision/main", status=status, headers={"Retry-After": "0"}),
        Fault(f"/resolve/{COMMIT}/config.json", times=2, status=status),
    ]
    folder, told = fetch()
    assert (folder / "config.json").is_file()
    assert told.waited == [(f"the hub answers {status}", 0.0)] * 3


def test_a_hub_that_stays_busy_is_given_up(hub: Hub, cache: Path) -> None:
    hub.faults = [Fault("/revision/main", times=9, status=503)]
    with pytest.raises(HubError, match=r"cannot answer now \(503\); try again later"):
        fetch()
    assert len(hub.seen) == 4
    hub.faults = [Fault("/revision/main", times=9, status=429)]
    with pytest.raises(HubError, match=r"asks to come back later \(429\)"):
        fetch()


def test_the_wait_is_the_one_that_the_hub_asks_for(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phirt_export.hub import connection

    slept: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", slept.append)
    hub.faults = [
        Fault("/revision/main", status=429, headers={"RateLimit": '"api";r=0;t=55'}),
        Fault("/revision/main", status=503, headers={"Retry-After": "7"}),
        Fault("/revision/main", status=429, headers={"Retry-After": "99999"}),
    ]
    fetch()
    assert slept == [55.0, 7.0, 300.0]


def test_a_gated_repository_needs_a_token(hub: Hub, cache: Path) -> None:
    hub.tokens["some/model"] = "secret"
    with pytest.raises(
        HubError, match=r"some/model is gated \(401\): accept its terms at http.*/some/model, then"
    ):
        fetch()
    with pytest.raises(
        HubError, match=r"does not accept the token \(401\); give a valid one with --token or HF_"
    ):
        fetch(token="wrong")
    with pytest.raises(HubError, match=r"some/model is gated \(403\)"):
        fetch(token="good")
    folder, _ = fetch(token="secret")
    assert (folder / SHARD).is_file()
    # The token is the hub's: the host with the large files is another one.
    assert {r.token for r in hub.seen if r.path == f"/some/model/{SHARD}"} == {None}


def test_the_token_may_be_in_the_environment_or_of_a_login(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens["some/model"] = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch()
    monkeypatch.delenv("HF_TOKEN")
    (cache.parents[1] / "token").write_text("secret\n")
    fetch()


def test_a_token_of_a_file_may_not_read_all(hub: Hub, cache: Path) -> None:
    hub.faults = [Fault("/revision/main", times=9, status=403, headers={"X-Error-Message": "Fine-grained"})]
    with pytest.raises(HubError, match=r"the token may not read some/model \(403\); give one that may"):
        fetch(token="good")


def test_what_is_not_there(hub: Hub, cache: Path) -> None:
    with pytest.raises(
        HubError, match=r"no folder 'some/other' here, and http.* shows no repository .*; check the"
    ):
        fetch("some/other")
    with pytest.raises(HubError, match=r"some/model has no revision 'v9'; "):
        fetch("some/model", "v9")
    hub.faults = [Fault(f"resolve/{COMMIT}/{SHARD}", status=404, headers={"X-Error-Code": "EntryNotFound"})]
    with pytest.raises(HubError, match="some/model lacks a file"):
        fetch()


def test_a_missing_shard_is_named_before_anything_is_fetched(hub: Hub, cache: Path) -> None:
    del hub.repos["some/model"][SHARD]
    with pytest.raises(
        HubError, match=rf"some/model lacks {SHARD}, which its model.safetensors.index.json names"
    ):
        fetch()
    assert not hub.fetched(FIRST)


def test_repositories_that_are_no_checkpoint(hub: Hub, cache: Path, tmp_path: Path) -> None:
    hub.repos["some/pickles"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(HubError, match=r"pickled weights alone \(pytorch_model.bin\).*not fetched; choose"):
        fetch("some/pickles")
    hub.repos["some/gguf"] = {"a-Q4_0.gguf": b"GGUF", "README.md": b"x"}
    with pytest.raises(HubError, match=r"some/gguf holds GGUF files; name one: some/gguf/a-Q4_0.gguf"):
        fetch("some/gguf")
    hub.repos["some/data"] = {"train.parquet": b"x"}
    with pytest.raises(HubError, match="so it is no checkpoint; check the name"):
        fetch("some/data")
    assert not any("/resolve/" in r.path for r in hub.seen)


def test_one_file_of_a_repository(hub: Hub, cache: Path) -> None:
    hub.repos["some/gguf"] = {"a-Q4_0.gguf": b"GGUF and more", "b-Q8_0.gguf": b"GGUF"}
    file, _ = fetch("some/gguf/a-Q4_0.gguf")
    assert file.name == "a-Q4_0.gguf" and file.read_bytes() == b"GGUF and more"
    assert hub_of.published_name(file) == "a-Q4_0"
    assert not hub.fetched("b-Q8_0.gguf")
    shards = {f"Q8/c-{number:05}-of-00003.gguf": b"GGUF%d" % number for number in (1, 2, 3)}
    hub.repos["some/shards"] = shards | {"other.gguf": b"GGUF"}
    file, _ = fetch("some/shards/Q8/c-00002-of-00003.gguf")
    assert {p.name for p in file.parent.iterdir()} == {name.partition("/")[2] for name in shards}
    with pytest.raises(HubError, match=r"some/gguf holds no c.gguf; it has a-Q4_0.gguf, b-Q8_0.gguf"):
        fetch("some/gguf/c.gguf")


def test_an_index_cannot_name_files_elsewhere(hub: Hub, cache: Path) -> None:
    for name in ("../../outside.safetensors", "modeling.py", "sub/x.safetensors"):
        hub.repos["some/model"] |= {
            name: b"x",
            "model.safetensors.index.json": b'{"weight_map": {"a": "%s"}}' % name.encode(),
        }
        with pytest.raises(HubError, match="some/model lacks"):
            fetch()


def test_no_network(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        HubError, match=r"http://127.0.0.1:9 cannot be reached \(.*refused.*\); check the network and"
    ) as e:
        fetch()
    assert "--offline" not in str(e.value)


def test_a_kept_copy_needs_no_network(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    of = HubId("some/model")
    with pytest.raises(
        HubError, match="some/model is no folder, and no whole copy of revision 'main' is kept in"
    ):
        hub_of.kept(of)
    folder, _ = fetch()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="; --offline uses the copy that is kept here"):
        fetch()
    assert hub_of.kept(of) == hub_of.kept(HubId("some/model", COMMIT)) == folder
    with pytest.raises(HubError, match="no whole copy of revision 'v1'"):
        hub_of.kept(HubId("some/model", "v1"))
    (folder / SHARD).unlink()
    with pytest.raises(HubError, match="no whole copy"):
        hub_of.kept(of)


def test_a_disk_that_fills_up_in_the_middle(
    hub: Hub, cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phirt_export.hub.cache import Arrival

    whole = Arrival.add

    def add(arrival: Arrival, chunk: bytes) -> None:
        if arrival.file.name == SHARD:
            whole(arrival, chunk[:5000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(arrival, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Arrival, "add", add)
        with pytest.raises(
            HubError, match=r"the disk of .* is full; free space and give the same command again"
        ):
            fetch()
    hub.seen.clear()
    folder, _ = fetch()
    assert (folder / SHARD).read_bytes() == (checkpoint / SHARD).read_bytes()
    assert [r.range for r in hub.fetched(f"/some/model/{SHARD}")] == ["bytes=5000-"] and not hub.fetched(
        FIRST
    )


def test_a_disk_that_is_too_small_is_found_before(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phirt_export.hub import cache as module

    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 1 << 40, 4000)
    )
    with pytest.raises(HubError, match=r"is full, 1\.3 MB more are needed; free space"):
        fetch()
    assert not hub.fetched(SHARD)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(hub: Hub, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.parent.chmod(0o500)
    with pytest.raises(HubError, match="cannot be written: Permission denied; HF_HOME names another folder"):
        fetch()


def test_two_do_not_fetch_one_file(hub: Hub, cache: Path, checkpoint: Path) -> None:
    from filelock import FileLock

    digest = hub_server.hashlib.sha256((checkpoint / SHARD).read_bytes()).hexdigest()
    locks = cache.parent / ".locks" / cache.name
    locks.mkdir(parents=True)
    with (
        FileLock(locks / f"{digest}.lock"),
        pytest.raises(HubError, match=f"another process fetches {SHARD} of some/model; wait until"),
    ):
        fetch()


@pytest.mark.parametrize("answer", [{"sha": "main"}, {"sha": "../../x"}, {"size": -1}, {"blobId": "../../x"}])
def test_a_hostile_listing_is_refused(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, object]
) -> None:
    original = hub_server._listing

    def listing(server: Hub, repo: str) -> dict[str, object]:
        document = original(server, repo)
        document |= {"sha": answer.get("sha", COMMIT)}
        for entry in document["siblings"]:
            entry |= {key: value for key, value in answer.items() if key in entry}
        return document

    monkeypatch.setattr(hub_server, "_listing", listing)
    with pytest.raises(HubError, match="try again later"):
        fetch()


def test_an_adapter_and_its_base(hub: Hub, cache: Path, checkpoint: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x" * 99, "tokenizer.json": b"{}"}
    hub.repos["some/lora"] = files | {"adapter_model.bin": b"x", "training_args.bin": b"x", "README.md": b"x"}
    folder, _ = fetch("some/lora")
    assert {p.name for p in folder.iterdir()} == set(files)
    assert hub_of.kept(HubId("some/lora")) == folder
    # A configuration beside an adapter does not make it a model.
    hub.repos["some/lora"] |= {"config.json": b"{}"}
    folder, _ = fetch("some/lora")
    assert (folder / "adapter_model.safetensors").is_file() and (folder / "config.json").is_file()


def test_what_makes_vectors_of_texts_comes_along(hub: Hub, cache: Path) -> None:
    steps = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    files = dict.fromkeys((*steps, "1_Pooling/config.json", "config.json", "vocab.txt"), b"{}")
    files |= {"model.safetensors": b"x" * 99}
    hub.repos["some/encoder"] = files | {"2_Dense/model.safetensors": b"x", "onnx/config.json": b"{}"}
    folder, _ = fetch("some/encoder")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(files)


def test_a_library_that_is_too_old_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "httpx2" else found(name))
    with pytest.raises(HubError, match="ids are not fetched where the extra optimum is installed") as caught:
        hub_of.require_library(HubId("some/model"))
    assert "\n" not in str(caught.value)
