"""Every reader of a run's folders verifies them against their manifests."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import copy_of
from run_files import change_json, reseal
from safetensors.torch import load_file, save_file

from peft_core.errors import DamagedError, ModelError, RunError
from peft_core.export.archives import zip_of
from peft_core.export.embeddings import export_embeddings
from peft_core.export.hub.model_card import model_card
from peft_core.export.onnx.report import read_onnx_report
from peft_core.export.page.webpage import export_page
from peft_core.files import atomic, manifests
from peft_core.inference.batching import check_finite
from peft_core.inference.decision import DecisionRule
from peft_core.inference.predictor import Predictor
from peft_core.merging import merge as merging
from peft_core.merging.certificate import certificate_of_merged, verified_certificate
from peft_core.merging.merge import merge
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows

GOOD = "The food was excellent."


def flip_bit(path: Path, place: int = -1) -> None:
    """Flip one bit of a file; its size stays."""
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)


@pytest.fixture
def own_merged(merged_run: Run, tmp_path: Path) -> Run:
    return copy_of(merged_run, tmp_path / "merged")


def test_certificate_of_merged_model_with_flipped_bit_is_rejected(own_merged: Run) -> None:
    """Regression: the certificate was accepted with logits off by 3e35, and published."""
    flip_bit(own_merged.merged / "model.safetensors")
    assert certificate_of_merged(own_merged) is None
    for use in (
        lambda: Predictor(own_merged.folder, "merged"),
        lambda: zip_of(own_merged, "merged"),
        lambda: verified_certificate(own_merged),
    ):
        with pytest.raises(DamagedError, match="model.safetensors"):
            use()
    assert "Merge certificate" not in model_card(own_merged, "adapter")
    assert merge(own_merged.folder).holds
    merged, adapter = (Predictor(own_merged.folder, kind).logits([GOOD]) for kind in ("merged", "adapter"))
    assert np.abs(merged - adapter).max() < 1e-5


def test_certificate_rejects_other_weights_with_a_valid_manifest(own_merged: Run) -> None:
    """A folder of other weights with a valid manifest is not the model that the merge compared."""
    path = own_merged.merged / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    reseal(own_merged.merged)
    with pytest.raises(DamagedError, match="differ from those that its certificate names"):
        verified_certificate(own_merged)


def test_merge_killed_before_rename_leaves_no_certificate(
    own_merged: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a kill between certificate and rename left the certificate with the old weights."""
    path = own_merged.adapter / "adapter_model.safetensors"
    save_file({name: tensor * 1.001 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    reseal(own_merged.adapter)
    adapter_sha256 = manifests.read_manifest(own_merged.adapter).files[path.name].sha256
    change_json(own_merged, "result.json", adapter_sha256=adapter_sha256)

    class Killed(BaseException):
        """Stands for SIGKILL: no handler of Exception catches it."""

    def die(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(atomic, "_swap", die)
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(Killed):
        merge(own_merged.folder)
    monkeypatch.undo()
    assert certificate_of_merged(own_merged) is None
    assert merge(own_merged.folder).adapter_sha256 != ""
    merged, adapter = (Predictor(own_merged.folder, kind).logits([GOOD]) for kind in ("merged", "adapter"))
    assert np.abs(merged - adapter).max() < 1e-5


def test_merge_that_fails_removes_older_certificate(own_merged: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_bit(own_merged.merged / "model.safetensors")
    monkeypatch.setattr(merging, "_merge_into", lambda *_: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        merge(own_merged.folder)
    assert not own_merged.certificate.exists()


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "adapter_config.json",
        "classifier.json",
        "tokenizer.json",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_damaged_adapter_is_rejected_by_every_reader(name: str, damage: str, own_run: Run) -> None:
    path = own_run.adapter / name
    content = path.read_bytes()
    if damage == "flip":
        flip_bit(path, len(content) // 2)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    for use in (
        lambda: Predictor(own_run.folder),
        lambda: zip_of(own_run, "adapter"),
        lambda: merge(own_run.folder),
        lambda: DecisionRule.read(own_run),
    ):
        with pytest.raises(RunError) as refusal:
            use()
        assert str(own_run.folder) not in str(refusal.value)
    assert own_run.damage()


@pytest.mark.parametrize("name", ["result.json", "evaluation.parquet", "validation.parquet"])
def test_damaged_result_and_rows_are_rejected(name: str, own_run: Run) -> None:
    flip_bit(own_run.results / name, 40)
    for read in (
        own_run.result,
        lambda: load_evaluation_rows(own_run),
        lambda: load_evaluation_rows(own_run, "validation"),
    ):
        with pytest.raises(DamagedError, match=name):
            read()
    assert any(name in sentence for sentence in own_run.damage())
    assert Predictor(own_run.folder).predict([GOOD])[0].scores, "the adapter still works"


def test_result_of_another_adapter_is_refused(own_run: Run) -> None:
    path = own_run.adapter / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    reseal(own_run.adapter)
    with pytest.raises(DamagedError, match="another adapter"):
        own_run.result()


@pytest.mark.parametrize("kind", ["onnx", "embeddings", "page"])
def test_damaged_export_is_not_zipped(kind: str, own_export: Run) -> None:
    {"embeddings": export_embeddings, "page": export_page, "onnx": str}[kind](own_export.folder)
    files = [path for path in (own_export.folder / kind).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    zip_of(own_export, kind)
    flip_bit(largest)
    with pytest.raises(DamagedError, match=largest.name):
        zip_of(own_export, kind)
    if kind == "onnx":
        assert read_onnx_report(own_export) is None


def test_zip_of_changed_weights_ignores_modification_times(own_run: Run) -> None:
    """Regression: after a clock jump, a zip of old weights was newer than the weights and was served."""
    path = zip_of(own_run, "adapter")
    first = path.read_bytes()
    weights = own_run.adapter / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    os.utime(weights, (1, 1))
    reseal(own_run.adapter)
    assert zip_of(own_run, "adapter").read_bytes() != first


@pytest.mark.parametrize("logit", [np.nan, np.inf, -np.inf])
def test_check_finite_rejects_nan_and_infinity(logit: float) -> None:
    logits = np.zeros((40, 2), dtype=np.float32)
    check_finite(logits)
    check_finite(logits[:0])
    logits[3, 1] = logit
    with pytest.raises(ModelError, match="not finite for 1 of 40 texts"):
        check_finite(logits)


def test_predict_with_nan_weights_raises_model_error(own_run: Run) -> None:
    """Regression: `[nan, nan]` was predicted as the first label."""
    path = own_run.adapter / "adapter_model.safetensors"
    save_file(
        {name: tensor * float("nan") for name, tensor in load_file(path).items()}, path, {"format": "pt"}
    )
    reseal(own_run.adapter)
    with pytest.raises(ModelError, match="not finite"):
        Predictor(own_run.folder).predict([GOOD])


def test_damage_names_each_part_and_other_parts_work(own_run: Run, finished_run: Run) -> None:
    assert own_run.damage() == []
    flip_bit(own_run.folder / "metrics.jsonl", 200)
    flip_bit(own_run.results / "evaluation.parquet", 40)
    sentences = " ".join(own_run.damage())
    assert "metrics.jsonl is damaged from line" in sentences and "evaluation.parquet" in sentences
    assert finished_run.damage() == []


def test_damage_reports_truncated_metrics(own_run: Run) -> None:
    path = own_run.folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-5]))
    assert any("is missing its last rows" in sentence for sentence in own_run.damage())


@pytest.mark.parametrize(
    ("name", "sentence", "usable"),
    [
        ("adapter/adapter_model.safetensors", "'adapter_model.safetensors' of adapter/ is missing", "result"),
        ("adapter/manifest.json", "adapter/manifest.json is missing", "result"),
        ("adapter", "its adapter is missing; train it again", "result"),
        ("evaluation", "its result and its test rows are missing; train it again", "adapter"),
    ],
)
def test_damage_lists_missing_part(name: str, sentence: str, usable: str, own_run: Run) -> None:
    """Regression: no damage was listed, and Predict asked for a finished run."""
    atomic.remove_tree(own_run.folder / name)
    (listed,) = own_run.damage()
    assert sentence in listed
    other = {"result": "result and test rows", "adapter": "adapter"}[usable]
    assert own_run.usable_parts() == ["settings", other]
    reads = {"result": own_run.result, "adapter": lambda: Predictor(own_run.folder)}
    assert reads.pop(usable)()
    for read in reads.values():
        with pytest.raises(DamagedError, match=sentence):
            read()


def test_zip_of_missing_adapter_raises_damaged_error(own_run: Run) -> None:
    atomic.remove_tree(own_run.adapter)
    with pytest.raises(DamagedError, match="its adapter is missing"):
        zip_of(own_run, "adapter")
