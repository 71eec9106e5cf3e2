"""Zip archives of an adapter or a merged model."""

import zipfile
from pathlib import Path

import pytest
from conftest import copy_of
from run_files import reseal
from safetensors.torch import load_file, save_file

from peft_core.errors import RunError
from peft_core.export.archives import zip_of
from peft_core.runs import Run


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_zip_of_contains_the_folder(kind: str, merged_run: Run) -> None:
    path = zip_of(merged_run, kind)
    folder = merged_run.folder / kind
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archived = {name: archive.read(name) for name in archive.namelist()}
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "manifest.json"}
    assert archived == files
    assert path.name == f"{merged_run.run_id}-{kind}.zip"
    assert path.parent == merged_run.folder / "downloads" / kind
    assert not list(merged_run.folder.glob(".*"))


def test_zip_of_rewrites_only_after_folder_changes(own_run: Run) -> None:
    first = zip_of(own_run, "adapter").stat()
    assert zip_of(own_run, "adapter").stat().st_ino == first.st_ino
    (own_run.adapter / "classifier.json").write_text("{}", encoding="utf-8")
    reseal(own_run.adapter)
    with zipfile.ZipFile(zip_of(own_run, "adapter")) as archive:
        assert archive.read("classifier.json") == b"{}"


def test_zip_of_omits_removed_files(own_run: Run) -> None:
    before = {file.name for file in own_run.adapter.iterdir()} - {"manifest.json"}
    (own_run.adapter / "decision.json").write_text("{}", encoding="utf-8")
    reseal(own_run.adapter)
    zip_of(own_run, "adapter")
    (own_run.adapter / "decision.json").unlink()
    reseal(own_run.adapter)
    with zipfile.ZipFile(zip_of(own_run, "adapter")) as archive:
        assert set(archive.namelist()) == before


def test_zip_of_damaged_zip_is_rewritten(own_run: Run) -> None:
    path = zip_of(own_run, "adapter")
    path.write_bytes(path.read_bytes()[:500])
    with zipfile.ZipFile(zip_of(own_run, "adapter")) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("small_disk", [200], indirect=True)
def test_zip_of_full_disk_leaves_no_zip(small_disk: Path, finished_run: Run) -> None:
    run = copy_of(finished_run, small_disk)
    (run.adapter / "padding.onnx").write_bytes(b"0" * 80_000)  # stored without compression
    reseal(run.adapter)
    with pytest.raises(RunError, match="The disk is full"):
        zip_of(run, "adapter")
    assert not list(run.folder.rglob("*.zip")) and not list(run.folder.rglob(".staging*"))


@pytest.mark.parametrize("kind", ["merged", "onnx", "config.json", "..", ""])
def test_zip_of_missing_folder_raises(kind: str, own_run: Run) -> None:
    with pytest.raises(RunError, match="merge it first|export it first|no download"):
        zip_of(own_run, kind)
    assert not list(own_run.folder.glob("*.zip"))


def test_zip_of_empty_folder_raises(own_run: Run) -> None:
    for file in own_run.adapter.iterdir():
        file.unlink()
    with pytest.raises(RunError, match="is damaged: adapter/manifest.json is missing"):
        zip_of(own_run, "adapter")


def test_zip_of_merged_model_of_earlier_adapter_raises(merged_run: Run, tmp_path: Path) -> None:
    run = copy_of(merged_run, tmp_path)
    assert zip_of(run, "merged").is_file()
    path = run.adapter / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    reseal(run.adapter)
    with pytest.raises(RunError, match="belongs to an earlier adapter; merge it again"):
        zip_of(run, "merged")
