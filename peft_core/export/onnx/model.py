"""ONNX export of a run: float32 and int8 files, evaluated against the model in torch."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from peft_core.errors import ConfigError, ExportError
from peft_core.export.onnx.graph import TrainedModel, narrowing_matrices, write_fp32, write_int8
from peft_core.export.onnx.judge import ExportEvaluation
from peft_core.export.onnx.report import REPORT_FILE, readme
from peft_core.files.atomic import write_json, write_text
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule, update_decision
from peft_core.inference.loading import MERGED, load_adapter, load_adapter_base, load_variant, merged_weights
from peft_core.inference.onnx_session import FP32_FILE, INT8_FILE, OnnxModel, load_onnx
from peft_core.merging.certificate import certificate_of_merged, sha256_of_adapter
from peft_core.methods.registry import METHODS
from peft_core.models.encoder import model_config, refuse_quantized
from peft_core.models.sources import hub_commit
from peft_core.progress import Progress, no_progress
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows

MAX_DROP = 0.5  # points of the headline metric that int8 may cost
FP32_TOLERANCE = (
    1e-3  # of a logit, relative to the largest if that is above 1; other kernels round differently
)


def export_onnx(
    run_dir: str | Path, max_drop: float = MAX_DROP, progress: Progress = no_progress
) -> dict[str, Any]:
    """Write `onnx/` as a whole or not at all.

    The folder holds config.json, the tokenizer, `onnx/model.onnx`, `onnx/model_quantized.onnx`, README.md,
    report.json, and decision.json if a decision rule was saved: the layout that transformers.js and the Hub's
    tools read. An int8 file that loses more than `max_drop` is written again with `float32_matrices` excluded
    from quantization, and removed if it still loses too much.

    Args:
        run_dir: folder of the run.
        max_drop: points of the headline metric that int8 may lose, from 0 to 100.
        progress: callback for the share done and the current stage.

    Returns:
        The report, as JSON types. It has an entry for `original` (the model in torch), `fp32` and `int8` with
        `metrics` on the evaluation rows by the default decision rule, `bytes`, `rows_per_second` on `threads`
        threads and `speed_ratio` to the original. The two files also have `drop` (points of the headline
        metric lost; a correlation counts times 100), `within` (whether that is at most `max_drop`),
        `labels_flipped`, `max_logit_diff` and `kept`.

    Raises:
        ConfigError: `max_drop` is out of range.
        RunError: there is no adapter, the evaluation rows are lost, or the disk is full.
        ModelError, HubError: the base model is missing or has changed.
        MergeError, ExportError: the model cannot be exported, or the export differs from it.
    """
    _check_max_drop(max_drop)
    run = Run(Path(run_dir))
    classifier, rows = Classifier.read(run), load_evaluation_rows(run)
    adapter_sha256 = sha256_of_adapter(run)
    progress(0.0, "Loading the model")
    model, tokenizer = _trained_model(run, classifier)
    with run.new_folder(run.onnx) as staging:
        progress(0.1, "Writing the ONNX file")
        _write_float32(staging, classifier, model, tokenizer)
        DecisionRule.read(run).write(staging, classifier.labels)
        progress(0.3, f"In torch: logits of {len(rows):,} rows")
        evaluation = ExportEvaluation.from_model(model, tokenizer, rows, classifier)
        report = {
            "run_id": run.run_id,
            "adapter_sha256": adapter_sha256,
            "created": time.time(),
            "rows": len(rows),
            "threads": torch.get_num_threads(),
            "max_drop": float(max_drop),
            **evaluation.metadata,
            **_evaluate(staging, evaluation, max_drop, progress),
        }
        write_text(staging / "README.md", readme(report, classifier.text_pair))
        write_json(staging / REPORT_FILE, report)
    update_decision(run, run.onnx)
    progress(1.0, "Exported")
    return report


def _check_max_drop(max_drop: Any) -> None:
    is_number = isinstance(max_drop, int | float) and not isinstance(max_drop, bool)
    if not is_number or not 0 <= max_drop <= 100:
        raise ConfigError(f"max_drop is {max_drop!r}; it is a number of points from 0 to 100.")


def _trained_model(run: Run, classifier: Classifier) -> tuple[TrainedModel, Any]:
    """Return the merged model, or the base with its adapter if the method cannot merge; and the tokenizer."""
    if certificate_of_merged(run) is not None:
        model, tokenizer = load_variant(run, classifier, MERGED)
        return model.eval(), tokenizer
    name = classifier.base_model_name_or_path
    refuse_quantized(model_config(name, hub_commit(classifier.base_revision)), name)
    base = load_adapter_base(run, classifier)
    adapted = load_adapter(run, base)
    model = adapted.eval() if METHODS[run.config().method].cannot_merge else merged_weights(run, adapted)
    assert isinstance(model, PreTrainedModel | PeftModel)  # a transformers model, wrapped by PEFT or not
    return model, base.tokenizer


def _write_float32(folder: Path, classifier: Classifier, model: TrainedModel, tokenizer: Any) -> None:
    """Write the float32 file, the tokenizer and the configuration."""
    tokenizer.model_max_length = classifier.max_length  # to truncate texts as in training
    tokenizer.save_pretrained(folder)
    (folder / FP32_FILE).parent.mkdir()
    has_external_data = write_fp32(model, tokenizer, folder / FP32_FILE)
    config = copy.deepcopy(model.config)
    classifier_model = model.get_base_model() if isinstance(model, PeftModel) else model
    config.architectures = [type(classifier_model).__name__]
    if has_external_data:
        options = {"use_external_data_format": {Path(FP32_FILE).name: True}}
        config.update({"transformers.js_config": options})
    config.save_pretrained(folder)


def _evaluate(
    folder: Path, evaluation: ExportEvaluation, max_drop: float, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return the report's `original`, `fp32` and `int8`; remove an int8 file that loses too much."""
    fp32_model = _load(folder, FP32_FILE)
    logits = fp32_model.logits(*evaluation.inputs, _stage_progress(progress, 0.45, 0.65, "ONNX, float32"))
    _check_fp32_logits(evaluation.reference, logits)
    fp32 = {"file": FP32_FILE, "bytes": _size(folder, FP32_FILE), **evaluation.compare(logits, max_drop)}
    int8, int8_model = _write_and_evaluate_int8(folder, evaluation, max_drop, progress)
    progress(0.95, "Measuring speed")
    speeds = evaluation.rows_per_second({"fp32": fp32_model.logits, "int8": int8_model.logits})
    if not int8["kept"]:
        (folder / INT8_FILE).unlink()
    entries = {"original": evaluation.original, "fp32": {**fp32, "kept": True}, "int8": int8}
    return {name: {**entry, **speeds[name]} for name, entry in entries.items()}


def _write_and_evaluate_int8(
    folder: Path, evaluation: ExportEvaluation, max_drop: float, progress: Progress
) -> tuple[dict[str, Any], OnnxModel]:
    """Write the int8 file; if it loses too much, write it again without the narrowing matrices.

    Returns:
        The report entry of the last file written, and its model.
    """
    for start, excluded_nodes in ((0.65, []), (0.8, narrowing_matrices(folder / FP32_FILE))):
        write_int8(folder / FP32_FILE, folder / INT8_FILE, excluded_nodes)
        model = _load(folder, INT8_FILE)
        logits = model.logits(
            *evaluation.inputs, _stage_progress(progress, start, start + 0.15, "ONNX, int8")
        )
        comparison = evaluation.compare(logits, max_drop)
        if comparison["within"]:
            break
    entry = {
        "file": INT8_FILE,
        "bytes": _size(folder, INT8_FILE),
        "float32_matrices": len(excluded_nodes),
        "kept": comparison["within"],
    }
    return {**entry, **comparison}, model


def _load(folder: Path, file: str) -> OnnxModel:
    return load_onnx(folder, file, torch.get_num_threads())


def _size(folder: Path, file: str) -> int:
    """Return the bytes of an ONNX file, including its external data."""
    return sum(part.stat().st_size for part in folder.glob(f"{file}*"))


def _stage_progress(progress: Progress, start: float, end: float, name: str) -> Callable[[float], None]:
    return lambda share: progress(start + share * (end - start), f"{name}: logits of the evaluation rows")


def _check_fp32_logits(reference: np.ndarray, logits: np.ndarray) -> None:
    largest = float(np.abs(reference - logits).max())
    allowed = FP32_TOLERANCE * max(1.0, float(np.abs(reference).max()))
    if not largest <= allowed:  # also if NaN
        raise ExportError(
            f"The ONNX file does not match the trained model: a logit differs by {largest:.2g} (at most "
            f"{allowed:.2g} is allowed); nothing was saved."
        )
