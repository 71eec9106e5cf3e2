"""ONNX export: a folder for stock libraries, compared with torch, and exports that fail."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pandas as pd
import pytest
import torch
from conftest import copy_of
from matrix import SMALL
from processes import ROOT, answer
from run_files import change_json, reseal
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from peft_core import runs
from peft_core.errors import ConfigError, ExportError, ModelError, RunError
from peft_core.export.archives import zip_of
from peft_core.export.onnx import graph as onnx_graph
from peft_core.export.onnx import model as onnx_model
from peft_core.export.onnx.graph import write_int8
from peft_core.export.onnx.model import export_onnx
from peft_core.export.onnx.report import read_onnx_report
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.inference.onnx_session import FP32_FILE, INT8_FILE, load_onnx
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows

FILES = {
    "README.md", "config.json", "manifest.json", "report.json", "tokenizer.json", "tokenizer_config.json",
    FP32_FILE, INT8_FILE,
}  # fmt: skip
WITHOUT_TORCH = """
import os, sys
sys.modules |= dict.fromkeys(["torch", "peft", "peft_core"])  # None: an import of them fails
os.chdir(sys.argv[1])
"""


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def reuse_exported_file(exported: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace torch's slow exporter: it returns an ONNX file that was exported before."""
    path = shutil.copy(exported.onnx / FP32_FILE, tmp_path / "written.onnx")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model=onnx_ir.load(path)))
    return path


def test_onnx_folder_has_the_layout_of_hub_tools(exported: Run) -> None:
    assert names(exported.onnx) == FILES
    config = AutoConfig.from_pretrained(exported.onnx)
    assert config.architectures == ["BertForSequenceClassification"]
    assert config.id2label == {0: "bad", 1: "good"}
    assert not list(exported.folder.glob(".*"))


def test_onnx_files_contain_no_local_paths(exported: Run) -> None:
    base = exported.config().model_name_or_path
    for name in names(exported.onnx):
        content = (exported.onnx / name).read_bytes()
        for path in (str(ROOT), base, "site-packages", ".py"):
            assert path.encode() not in content, f"{name} holds {path}"


def test_onnx_report_matches_the_exported_files(each_task: Run) -> None:
    report = read_onnx_report(each_task)
    assert report is not None
    run_result, first = each_task.result(), report["headline"]
    assert report["problem_type"] == run_result["problem_type"]
    assert report["rows"] == run_result["eval_rows"]
    assert report["threads"] == torch.get_num_threads()
    for metric, score in report["original"]["metrics"].items():
        assert score == pytest.approx(run_result[metric], abs=1e-4), metric
    assert report["fp32"]["max_logit_diff"] <= 5e-5
    assert (report["fp32"]["labels_flipped"], report["fp32"]["drop"]) == (0, pytest.approx(0, abs=1e-3))
    assert 0 < report["int8"]["max_logit_diff"] < 1.0
    assert report["int8"]["bytes"] < report["fp32"]["bytes"]
    for name in ("fp32", "int8"):
        exported_file, original = report[name], report["original"]
        assert exported_file["bytes"] == (each_task.onnx / exported_file["file"]).stat().st_size
        assert exported_file["drop"] == pytest.approx(
            100 * (original["metrics"][first] - exported_file["metrics"][first]), abs=1e-4
        )
        assert exported_file["within"] and exported_file["kept"]
        assert exported_file["speed_ratio"] == pytest.approx(
            exported_file["rows_per_second"] / original["rows_per_second"]
        )


def stock_answers(run: Run) -> dict[str, tuple[list, np.ndarray]]:
    """Run the README's program on the evaluation rows without torch.

    Returns:
        By ONNX file, the answers and the logits.
    """
    rows, text = pd.read_parquet(run.evaluation), (run.onnx / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    for example, name in (("A text to read.", "text"), ("Its second text.", "text_pair")):
        if name in rows:
            assert code.count(json.dumps([example])) == 1
            code = code.replace(json.dumps([example]), json.dumps(rows[name].tolist()))
    program, files = WITHOUT_TORCH + "outputs = {}\n", [FP32_FILE, INT8_FILE]
    assert code.count(INT8_FILE) == 1
    for file in files:
        program += code.replace(INT8_FILE, file) + f"outputs[{file!r}] = answers, logits.tolist()\n"
    outputs = answer(program + "print(json.dumps(outputs))", str(run.onnx))
    return {file: (answers, np.asarray(logits)) for file, (answers, logits) in outputs.items()}


def test_onnx_program_without_torch_answers_as_the_adapter(each_task: Run) -> None:
    rows, report = pd.read_parquet(each_task.evaluation), read_onnx_report(each_task)
    expected, labels = np.stack(rows["logits"]), each_task.result().get("labels")
    outputs = stock_answers(each_task)
    exact, rounded = (np.abs(outputs[file][1] - expected).max() for file in (FP32_FILE, INT8_FILE))
    assert exact <= 2e-5 * max(1, np.abs(expected).max())
    assert exact < rounded <= 3 * report["int8"]["max_logit_diff"], "in another batch, rounded otherwise"
    answers, predicted = outputs[FP32_FILE][0], rows["predicted"].tolist()
    if labels is None:
        assert answers == pytest.approx(predicted, abs=1e-4)
    elif isinstance(answers[0], list):
        assert answers == [[labels[i] for i in np.flatnonzero(row)] for row in predicted]
    else:
        assert answers == [labels[i] for i in predicted]


@pytest.mark.usefixtures("reuse_exported_file")
def test_second_export_replaces_the_first_and_reports_progress(own_export: Run) -> None:
    shares: list[float] = []
    DecisionRule(temperature=2.0, thresholds=(0.3, 0.7)).save(own_export, ("bad", "good"))
    (own_export.onnx / "left over").touch()
    export_onnx(own_export.folder, 1, lambda share, what: shares.append(share))
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert names(own_export.onnx) == FILES | {"decision.json"}
    saved_rule = json.loads((own_export.onnx / "decision.json").read_text(encoding="utf-8"))
    assert saved_rule == {"temperature": 2.0, "thresholds": {"bad": 0.3, "good": 0.7}, "abstain_below": 0.0}


@pytest.mark.parametrize("multi_label", [False, True])
def test_onnx_program_applies_the_decision_rule(
    multi_label: bool, own_export: Run, exported_tasks: dict[str, Run], tmp_path: Path
) -> None:
    run = copy_of(exported_tasks["topics"], tmp_path) if multi_label else own_export
    classifier, rows = Classifier.read(run), load_evaluation_rows(run)
    bounds = (0.3, 0.8, 0.6) if multi_label else (0.2, 0.8)
    problem_type = classifier.problem_type
    confidences = np.unique(DecisionRule(4.0, bounds).confidence(rows.logits, problem_type))
    middle = len(confidences) // 2
    rule = DecisionRule(4.0, bounds, abstain_below=float(confidences[middle - 1 : middle + 1].mean()))
    rule.save(run, classifier.labels)
    decided, abstained = rule.decide(rows.logits, problem_type), rule.abstains(rows.logits, problem_type)
    label_names = [
        [classifier.labels[i] for i in np.flatnonzero(row)] if multi_label else classifier.labels[row]
        for row in decided
    ]
    expected = [None if no else name for name, no in zip(label_names, abstained, strict=True)]
    assert 0 < abstained.sum() < len(abstained)
    assert stock_answers(run)[FP32_FILE][0] == expected


def test_decision_rule_saved_after_export_is_in_the_zip(own_export: Run) -> None:
    labels = ("bad", "good")
    zips = []
    for decision in (DecisionRule(), DecisionRule(abstain_below=0.6), DecisionRule()):
        decision.save(own_export, labels)
        with zipfile.ZipFile(zip_of(own_export, "onnx")) as archive:
            zips.append(set(archive.namelist()))
    files = FILES - {"manifest.json"}
    assert zips == [files, files | {"decision.json"}, files]


def test_onnx_report_of_an_earlier_adapter_is_none(own_export: Run) -> None:
    assert read_onnx_report(own_export) is not None
    path = own_export.adapter / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert read_onnx_report(own_export) is None
    reseal(own_export.adapter)
    with pytest.raises(RunError, match="belongs to an earlier adapter; export it again"):
        zip_of(own_export, "onnx")
    for content in ("", "[]", "{}"):
        (own_export.onnx / "report.json").write_text(content, encoding="utf-8")
        assert read_onnx_report(own_export) is None


def test_int8_beyond_max_drop_is_reported_and_removed(own_export: Run, reuse_exported_file: Path) -> None:
    """One unused word embedding is so large that all others round to zero."""
    model = onnx.load(reuse_exported_file)
    words = initializer(model, "word_embeddings.weight")
    numbers = onnx.numpy_helper.to_array(words).copy()
    numbers[5] = 1000.0
    words.raw_data = numbers.tobytes()
    onnx.save(model, reuse_exported_file)
    report = export_onnx(own_export.folder, 2.5)
    fp32, int8 = report["fp32"], report["int8"]
    assert fp32["drop"] == 0 and fp32["kept"]
    assert int8["drop"] > 2.5
    assert not int8["within"] and not int8["kept"]
    assert int8["float32_matrices"] == 2, "the second try left out one matrix of each layer"
    assert int8["labels_flipped"] > 0
    assert names(own_export.onnx) == FILES - {INT8_FILE}
    readme = (own_export.onnx / "README.md").read_text(encoding="utf-8")
    assert f"it lost {int8['drop']:.2f} points of accuracy, and at most 2.5 were allowed" in readme
    assert f'InferenceSession(folder / "{FP32_FILE}")' in readme


def initializer(model: onnx.ModelProto, end: str) -> onnx.TensorProto:
    return next(weight for weight in model.graph.initializer if weight.name.endswith(end))


@pytest.mark.usefixtures("reuse_exported_file")
def test_int8_export_retries_without_its_most_sensitive_matrices(
    own_export: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_spoiled_int8(source: Path, path: Path, left_out: list[str]) -> None:
        write_int8(source, path, left_out)
        if not left_out:
            model = onnx.load(path)
            head = next(
                weight for weight in model.graph.initializer if weight.name.endswith("classifier.bias")
            )
            head.raw_data = np.asarray([1e3, -1e3], dtype=np.float32).tobytes()
            onnx.save(model, path)

    monkeypatch.setattr(onnx_model, "write_int8", write_spoiled_int8)
    int8 = export_onnx(own_export.folder)["int8"]
    assert int8["kept"] and int8["float32_matrices"] == 2
    weights = onnx.load(own_export.onnx / INT8_FILE).graph.initializer
    wide = [list(weight.dims) for weight in weights if weight.data_type == onnx.TensorProto.FLOAT]
    assert wide.count([64, 32]) == 2


@pytest.mark.usefixtures("reuse_exported_file")
def test_export_beyond_the_tolerance_keeps_the_earlier_export(
    own_export: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_onnx_report(own_export)
    monkeypatch.setattr(onnx_model, "FP32_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="does not match the trained model: a logit differs by"):
        export_onnx(own_export.folder)
    assert read_onnx_report(own_export) == before, "the earlier export is still there"
    assert not list(own_export.folder.glob(".*"))


@pytest.mark.usefixtures("reuse_exported_file")
def test_export_without_the_base_model_needs_a_merged_model(
    merged_run: Run, own_run: Run, tmp_path: Path
) -> None:
    merged = copy_of(merged_run, tmp_path / "merged")
    for run in (merged, own_run):
        change_json(run, "adapter/classifier.json", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="gone"):
        export_onnx(own_run.folder)
    assert not {path.name for path in own_run.folder.iterdir()} & {"onnx", ".onnx"}
    report = export_onnx(merged.folder)
    assert report["original"]["metrics"]["accuracy"] == merged.result()["accuracy"]
    assert report["fp32"]["labels_flipped"] == 0


@pytest.mark.parametrize("max_drop", [-1, 101, float("nan"), "1", None, True])
def test_export_with_an_invalid_max_drop_is_refused(max_drop: Any, finished_run: Run) -> None:
    with pytest.raises(ConfigError, match="max_drop is"):
        export_onnx(finished_run.folder, max_drop)


@pytest.mark.parametrize(
    "lost", ["adapter/adapter_model.safetensors", "adapter/classifier.json", "evaluation/evaluation.parquet"]
)
def test_export_with_lost_files_raises_run_error(lost: str, own_run: Run) -> None:
    (own_run.folder / lost).unlink()
    with pytest.raises(RunError, match=own_run.run_id):
        export_onnx(own_run.folder)
    assert not {path.name for path in own_run.folder.iterdir()} & {"onnx", ".onnx"}


def test_load_onnx_of_a_lost_or_damaged_file_raises_run_error(own_export: Run) -> None:
    with pytest.raises(RunError, match=r"onnx/none.onnx of .* is missing or damaged; export it again"):
        load_onnx(own_export.onnx, "onnx/none.onnx")
    path = own_export.onnx / INT8_FILE
    for content in (b"", path.read_bytes()[:1000], b"pickle"):
        path.write_bytes(content)
        with pytest.raises(RunError, match="missing or damaged"):
            load_onnx(own_export.onnx, INT8_FILE)


@pytest.mark.usefixtures("reuse_exported_file")
@pytest.mark.parametrize("small_disk", [150, 230, 310], indirect=True)
def test_export_on_a_full_disk_leaves_no_folder(small_disk: Path, finished_run: Run) -> None:
    run = copy_of(finished_run, small_disk)
    with pytest.raises(RunError, match="The disk is full"):
        export_onnx(run.folder)
    assert not {path.name for path in run.folder.iterdir()} & {"onnx", ".onnx"}


def test_onnx_logits_keep_the_order_of_texts(exported: Run) -> None:
    model, shares = load_onnx(exported.onnx, threads=1), []
    texts = [f"the food was {'good ' * (i % 37)}" for i in range(70)]
    together = model.logits(texts, progress=shares.append)
    alone = np.concatenate([model.logits([text]) for text in texts])
    assert together.shape == (70, 2) and together.dtype == np.float32
    assert np.abs(together - alone).max() < 1e-5
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 3
    assert model.logits([]).shape == (0, 2)
    assert np.isfinite(model.logits(["word " * 50_000])).all()


def test_export_of_large_weights_writes_external_data(
    own_export: Run, reuse_exported_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "ONE_FILE_BYTES", 10_000)
    report = export_onnx(own_export.folder)
    assert names(own_export.onnx) == FILES | {f"{FP32_FILE}_data"}
    assert report["fp32"]["labels_flipped"] == report["fp32"]["drop"] == 0
    assert report["fp32"]["bytes"] > 100_000 > (own_export.onnx / FP32_FILE).stat().st_size
    config = json.loads((own_export.onnx / "config.json").read_text(encoding="utf-8"))
    assert config["transformers.js_config"] == {"use_external_data_format": {"model.onnx": True}}
    outputs = stock_answers(own_export)
    assert outputs[FP32_FILE][0] == outputs[INT8_FILE][0]


def test_export_of_prompt_tuning_matches_the_run(train_here: Callable[..., Run]) -> None:
    run = train_here(**SMALL, method="prompt_tuning")
    report = export_onnx(run.folder)
    assert report["original"]["metrics"]["accuracy"] == run.result()["accuracy"]
    assert report["fp32"]["labels_flipped"] == 0
    expected = np.stack(pd.read_parquet(run.evaluation)["logits"])
    assert np.abs(stock_answers(run)[FP32_FILE][1] - expected).max() <= 2e-5


@pytest.mark.usefixtures("reuse_exported_file")
@pytest.mark.parametrize("rule", [DecisionRule(2.0, (0.3, 0.7), 0.6), DecisionRule()])
def test_export_copies_a_decision_rule_saved_meanwhile(rule: DecisionRule, own_export: Run) -> None:
    """An export used to keep the rule from its start; `adapter/` and `onnx/` answered differently."""
    DecisionRule(temperature=3.0).save(own_export, ("bad", "good"))

    def save_rule(share: float, what: str) -> None:
        if what.startswith("In torch"):  # reported after the rule is written
            rule.save(own_export, ("bad", "good"))

    export_onnx(own_export.folder, progress=save_rule)
    adapter, exported_rule = (folder / "decision.json" for folder in (own_export.adapter, own_export.onnx))
    assert adapter.exists() == exported_rule.exists() == (rule != DecisionRule())
    assert not adapter.exists() or adapter.read_bytes() == exported_rule.read_bytes()
    assert read_onnx_report(own_export) is not None
    own_export.verify(own_export.onnx)


@pytest.mark.usefixtures("reuse_exported_file")
def test_export_of_a_run_deleted_meanwhile_leaves_no_folder(own_export: Run) -> None:
    """Saving the tokenizer would create the folder of the deleted run again."""

    def delete(share: float, what: str) -> None:
        if what.startswith("Writing"):
            runs.delete(own_export.folder.parent, own_export.run_id)

    with pytest.raises(RunError, match="was deleted meanwhile"):
        export_onnx(own_export.folder, progress=delete)
    assert not own_export.folder.exists()
