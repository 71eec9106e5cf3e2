"""The Hub client libraries, each in a separate process, work with the local test server."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from tiny import make_tiny_bert, make_yelp_parquet

MODEL, DATASET = "nlptown/tiny-stars", "Yelp/yelp_review_full"
GATED, BROKEN, MISSING = "someone/gated", "someone/broken", "someone/missing"
RUNNER = """
import json, sys, time
names = {}
exec(sys.argv[1], names)
start, outcome = time.perf_counter(), {}
try:
    outcome["value"] = names["act"](*sys.argv[2:])
except Exception as error:
    outcome["errors"] = [kind.__name__ for kind in type(error).__mro__]
    outcome["message"] = str(error)
outcome["seconds"] = time.perf_counter() - start
print(json.dumps(outcome))
"""
DOWNLOAD = """
from huggingface_hub import hf_hub_download
def act(source, name, revision="main"):
    with open(hf_hub_download(source, name, revision=revision), "rb") as stream:
        return len(stream.read())
"""
SNAPSHOT = """
from huggingface_hub import snapshot_download
def act(source):
    return snapshot_download(source)
"""
MODEL_INFO = """
from huggingface_hub import HfApi
def act(source):
    info = HfApi().model_info(source, files_metadata=True, timeout=5)
    lfs = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
    sizes = {file.rfilename: file.size for file in info.siblings}
    return {"gated": info.gated, "config": info.config, "lfs": lfs, "sizes": sizes,
            "total": info.safetensors["total"]}
"""
DATASET_INFO = """
from huggingface_hub import HfApi
def act(source):
    info = HfApi().dataset_info(source)
    card = info.card_data
    return {"sha": info.sha, "gated": info.gated, "config": card["configs"][0]["config_name"]}
"""
LISTING = """
from huggingface_hub import HfApi
def act(source):
    api = HfApi()
    kind = {"repo_type": "dataset"}
    flat = [entry.path for entry in api.list_repo_tree(source, **kind)]
    deep = list(api.list_repo_tree(source, recursive=True, expand=True, **kind))
    paths = api.get_paths_info(source, ["README.md", "yelp_review_full", "nothing"], **kind)
    return {"flat": flat, "deep": [entry.path for entry in deep], "some": [entry.path for entry in paths],
            "commits": sorted({entry.last_commit.oid for entry in deep}),
            "main": api.list_repo_refs(source, **kind).branches[0].target_commit,
            "exists": [api.file_exists(source, name, **kind) for name in ("README.md", "nothing")]}
"""


@dataclass
class CallOutcome:
    """Value or error of a client process, and the seconds of its call without imports."""

    seconds: float
    value: Any = None
    errors: list[str] = field(default_factory=list)
    message: str = ""


@dataclass
class Client:
    """Runs client code against one endpoint with one cache."""

    endpoint: str
    home: Path

    def run(self, code: str, *arguments: str) -> CallOutcome:
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1"}
        quiet = {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
        }
        command = [sys.executable, "-c", RUNNER, code, *arguments]
        done = subprocess.run(
            command, env=environment | settings | quiet, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return CallOutcome(**json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_yelp_parquet(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def hub(model_folder: Path, dataset_folder: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo("model", MODEL, model_folder)
        server.add_repo("dataset", DATASET, dataset_folder)
        yield server


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub.endpoint, tmp_path / "home")


def test_download_unchanged_file_sends_only_head_request(hub: HubServer, client: Client) -> None:
    size = client.run(DOWNLOAD, MODEL, "model.safetensors").value
    hub.requests.clear()
    assert client.run(DOWNLOAD, MODEL, "model.safetensors").value == size
    assert ("HEAD", f"/{MODEL}/resolve/main/model.safetensors") in hub.requests
    assert hub.downloads() == []


def test_download_revision_selects_commit(
    hub: HubServer, client: Client, model_folder: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(model_folder, tmp_path / "changed")
    old = hub.add_repo("model", MODEL, model_folder)
    (changed / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    new = hub.add_repo("model", MODEL, changed)
    assert old != new
    sizes = [client.run(DOWNLOAD, MODEL, "vocab.txt", revision).value for revision in (old, new, "main")]
    assert sizes == [(model_folder / "vocab.txt").stat().st_size, 6, 6]
    assert client.run(DOWNLOAD, MODEL, "vocab.txt", "f" * 40).errors[0] == "RevisionNotFoundError"


def test_model_and_dataset_info_describe_repositories(
    hub: HubServer, client: Client, model_folder: Path
) -> None:
    model_info = client.run(MODEL_INFO, MODEL).value
    assert model_info["sizes"] == {path.name: path.stat().st_size for path in model_folder.iterdir()}
    assert list(model_info["lfs"]) == ["model.safetensors"]
    assert model_info["config"] == {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    assert 10_000 < model_info["total"] < 100_000
    dataset_info = client.run(DATASET_INFO, DATASET).value
    assert dataset_info == {
        "sha": hub.find("dataset", DATASET, None).sha,
        "gated": False,
        "config": "yelp_review_full",
    }


def test_listing_returns_files_and_folders(hub: HubServer, client: Client) -> None:
    files = [f"yelp_review_full/{split}-00000-of-00001.parquet" for split in ("test", "train")]
    sha = hub.find("dataset", DATASET, None).sha
    assert client.run(LISTING, DATASET).value == {
        "flat": ["README.md", "yelp_review_full"],
        "deep": ["README.md", "yelp_review_full", *files],
        "some": ["README.md", "yelp_review_full"],
        "commits": [sha],
        "main": sha,
        "exists": [True, False],
    }


@pytest.mark.parametrize("code", [MODEL_INFO, DATASET_INFO, SNAPSHOT])
def test_missing_repository_raises_repository_not_found(client: Client, code: str) -> None:
    outcome = client.run(code, MISSING)
    assert outcome.errors[0] == "RepositoryNotFoundError"
    assert outcome.seconds < 5


def test_missing_file_raises_entry_not_found(client: Client) -> None:
    assert client.run(DOWNLOAD, MODEL, "nothing.json").errors[0] == "RemoteEntryNotFoundError"


def test_gated_repository_refuses_download(
    hub: HubServer, client: Client, model_folder: Path, dataset_folder: Path
) -> None:
    hub.add_repo("model", GATED, model_folder, gated=True)
    hub.add_repo("dataset", GATED, dataset_folder, gated=True)
    assert client.run(MODEL_INFO, GATED).value["gated"] == "manual"
    assert client.run(SNAPSHOT, GATED).errors[0] == "GatedRepoError"
    assert client.run(DATASET_INFO, GATED).value["gated"] == "manual"


def test_dropped_connection_raises_protocol_error(
    hub: HubServer, client: Client, model_folder: Path, dataset_folder: Path
) -> None:
    hub.add_repo("model", BROKEN, model_folder, drop_after=20_000)
    hub.add_repo("dataset", BROKEN, dataset_folder, drop_after=1_000)
    assert client.run(DOWNLOAD, BROKEN, "config.json").value > 0
    weights = client.run(DOWNLOAD, BROKEN, "model.safetensors")
    assert weights.errors[0] == "RemoteProtocolError"
    assert weights.seconds < 15


def test_stopped_server_refuses_connections(tmp_path: Path) -> None:
    with HubServer() as server:
        client = Client(server.endpoint, tmp_path)
    info, snapshot = client.run(MODEL_INFO, MODEL), client.run(SNAPSHOT, MODEL)
    assert info.errors[0] == "ConnectError"
    assert snapshot.errors[0] == "LocalEntryNotFoundError"
    assert max(info.seconds, snapshot.seconds) < 5


def test_connection_serves_ranges_errors_and_whole_files(hub: HubServer, model_folder: Path) -> None:
    content = (model_folder / "model.safetensors").read_bytes()
    path = f"/{MODEL}/resolve/main/model.safetensors"
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
    answers = {}
    for span in ("bytes=5-9", "bytes=10-", "bytes=-7", "bytes=999999999-", None):
        connection.request("GET", path, headers={"Range": span} if span else {})
        answer = connection.getresponse()
        answers[span] = (answer.status, answer.getheader("Content-Range"), answer.read())
    connection.close()
    size = len(content)
    assert answers["bytes=5-9"] == (206, f"bytes 5-9/{size}", content[5:10])
    assert answers["bytes=10-"] == (206, f"bytes 10-{size - 1}/{size}", content[10:])
    assert answers["bytes=-7"] == (206, f"bytes {size - 7}-{size - 1}/{size}", content[-7:])
    assert answers["bytes=999999999-"][:2] == (416, f"bytes */{size}")
    assert answers[None] == (200, None, content)


def test_head_request_returns_metadata_without_content(hub: HubServer) -> None:
    weights, config, nothing = (_head(hub, name) for name in ("model.safetensors", "config.json", "nothing"))
    assert weights["X-Linked-ETag"] == weights["ETag"]
    assert weights["X-Linked-Size"] == weights["Content-Length"]
    assert (len(weights["ETag"]), len(config["ETag"])) == (64 + 2, 40 + 2)
    assert "X-Linked-ETag" not in config
    assert nothing["X-Error-Code"] == "EntryNotFound"
    sha = hub.find("model", MODEL, None).sha
    assert [headers["X-Repo-Commit"] for headers in (weights, config, nothing)] == [sha] * 3


def _head(hub: HubServer, name: str) -> dict[str, str]:
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=5)
    connection.request("HEAD", f"/{MODEL}/resolve/main/{name}")
    answer = connection.getresponse()
    assert answer.read() == b""
    connection.close()
    return dict(answer.getheaders())
