"""Downloads with the real client, of runs outside every folder that gradio serves files from."""

import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_server import Server, serve
from conftest import copy_of
from gradio_client import Client
from gradio_client.exceptions import AppError

from peft_core.export.onnx.report import REPORT_FILE
from peft_core.files.atomic import write_json
from peft_core.files.manifests import write_manifest
from peft_core.merging.certificate import sha256_of_adapter
from peft_core.runs import Run

EXPORT_FILES = {"onnx": "onnx/model.onnx", "embeddings": "model.safetensors", "page": "index.html"}
ARCHIVE_FILES = {
    "adapter": "adapter_model.safetensors",
    "merged": "model.safetensors",
    "script": "train.py",
    **EXPORT_FILES,
}


@pytest.fixture(scope="module")
def run(merged_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A merged run with a file in the folder of each export."""
    run = copy_of(merged_run, tmp_path_factory.mktemp("elsewhere") / "runs")
    for kind, name in EXPORT_FILES.items():
        path = run.folder / kind / name
        path.parent.mkdir(parents=True)
        path.write_bytes(kind.encode())
        if kind == "onnx":
            write_json(path.parents[1] / REPORT_FILE, {"adapter_sha256": sha256_of_adapter(run)})
        write_manifest(run.folder / kind)
    return run


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Server]:
    with serve(run.folder.parent, "--mcp") as running:
        yield running


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Client:
    return Client(server.url, verbose=False, download_files=str(tmp_path / "downloads"))


def fetch(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("kind", ARCHIVE_FILES)
def test_download_of_run_outside_served_folders_returns_zip(kind: str, client: Client, run: Run) -> None:
    path = Path(client.predict(run.run_id, kind, api_name="/download"))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert [name for name in names if name.endswith(ARCHIVE_FILES[kind])], names
        if kind in EXPORT_FILES:
            assert archive.read(EXPORT_FILES[kind]) == kind.encode()


@pytest.mark.parametrize("kind", ["nothing", "../adapter", "", None])
def test_download_of_unknown_kind_returns_one_sentence(kind: object, client: Client, run: Run) -> None:
    with pytest.raises(AppError, match="it is one of adapter, merged") as refused:
        client.predict(run.run_id, kind, api_name="/download")
    assert str(run.folder.parent) not in str(refused.value)


def test_download_that_cannot_be_written_reveals_no_path(client: Client, run: Run) -> None:
    downloads = run.folder / "downloads"
    downloads.rename(run.folder / "aside")
    downloads.write_bytes(b"")  # blocks the zip's folder, even for root
    try:
        with pytest.raises(AppError) as refused:
            client.predict(run.run_id, "adapter", api_name="/download")
    finally:
        downloads.unlink()
        (run.folder / "aside").rename(downloads)
    assert str(refused.value) == "'downloads' is not a folder; move it elsewhere and try again."


def test_run_files_cannot_be_fetched_by_path(server: Server, client: Client, run: Run) -> None:
    client.predict(run.run_id, "adapter", api_name="/download")
    paths = [path for path in run.folder.rglob("*") if path.is_file()]
    assert run.folder / "status.json" in paths and any(path.suffix == ".zip" for path in paths)
    for path in paths:
        status, content = fetch(f"{server.url}/gradio_api/file={urllib.parse.quote(str(path))}")
        assert status in (403, 404), path
        assert content != path.read_bytes()


def test_repeated_download_leaves_one_copy(client: Client, run: Run) -> None:
    for _ in range(3):
        client.predict(run.run_id, "merged", api_name="/download")
    copies = list((run.folder.parent.parent / "tmp" / "gradio").rglob("*-merged.zip"))
    assert len(copies) == 1
    assert copies[0].stat().st_nlink == 2, "a hard link, no copy of the weights"
