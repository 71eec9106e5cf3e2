"""The ONNX export of a run: float32 and int8 files, judged against the model in torch."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peft_core.certificate import certificate_of_merged, sha256_of_adapter
from peft_core.encoder import model_config, refuse_quantised
from peft_core.errors import ConfigError, ExportError
from peft_core.export.onnx.graph import narrowing_matrices, write_fp32, write_int8
from peft_core.export.onnx.judge import Judge
from peft_core.export.onnx.report import REPORT_FILE, readme
from peft_core.files import write_json, write_text
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import Decision, update_decision
from peft_core.inference.loading import MERGED, load_adapter, load_adapter_base, load_variant, merged_weights
from peft_core.inference.onnx_session import FP32_FILE, INT8_FILE, OnnxModel, load_onnx
from peft_core.methods import METHODS
from peft_core.progress import Progress, unheard
from peft_core.rows import judged_rows
from peft_core.runs import Run
from peft_core.sources import hub_commit

MAX_DROP = 0.5  # points of the headline metric that int8 may cost
FP32_TOLERANCE = 1e-3  # of a logit, or of the largest if that is above 1: the same weights in other kernels


def export_onnx(
    run_dir: str | Path, max_drop: float = MAX_DROP, progress: Progress = unheard
) -> dict[str, Any]:
    """Write `onnx/`, whole or not at all, and return its report as JSON types.

    The folder holds config.json, the tokenizer, `onnx/model.onnx`, `onnx/model_quantized.onnx`, README.md,
    report.json, and decision.json where one was chosen: the layout that transformers.js and the Hub's tools
    read. The report says of `original` (the model in torch), `fp32` and `int8`: `metrics` on the evaluation
    rows by the plain rule, `bytes`, `rows_per_second` on the same `threads`, `speed_ratio` to the original;
    and of the two files also `drop` (points of the headline metric lost, Spearman's correlation times 100),
    `within` (whether that is at most `max_drop`), `labels_flipped`, `max_logit_diff` and `kept`. An int8 file
    that is not within is made again with `float32_matrices` left out, and not kept if that does not help.

    Raises ConfigError (max_drop), RunError (no adapter, lost rows, a full disk), ModelError or HubError (the
    base), MergeError or ExportError (no such file can be made, or it is not the trained model).
    """
    _check_max_drop(max_drop)
    run = Run(Path(run_dir))
    classifier, rows = Classifier.read(run), judged_rows(run)
    adapter_sha256 = sha256_of_adapter(run)
    progress(0.0, "Loading the model")
    model, tokenizer = _trained_model(run, classifier)
    with run.new_folder(run.onnx) as staging:
        progress(0.1, "Writing it as ONNX")
        _write_float32(staging, classifier, model, tokenizer)
        Decision.read(run).write(staging, classifier.labels)
        progress(0.3, f"In torch: logits of {len(rows):,} rows")
        judge = Judge.of(model, tokenizer, rows, classifier)
        report = {
            "run_id": run.run_id,
            "adapter_sha256": adapter_sha256,
            "created": time.time(),
            "rows": len(rows),
            "threads": torch.get_num_threads(),
            "max_drop": float(max_drop),
            **judge.task,
            **_judged(staging, judge, max_drop, progress),
        }
        write_text(staging / "README.md", readme(report, classifier.text_pair))
        write_json(staging / REPORT_FILE, report)
    update_decision(run, run.onnx)
    progress(1.0, "Exported")
    return report


def _check_max_drop(max_drop: Any) -> None:
    number = isinstance(max_drop, int | float) and not isinstance(max_drop, bool)
    if not number or not 0 <= max_drop <= 100:
        raise ConfigError(f"max_drop is {max_drop!r}; it is a number of points from 0 to 100.")


def _trained_model(run: Run, classifier: Classifier) -> tuple[nn.Module, Any]:
    """The merged model where the method merges, or else the adapter on its base; and the tokenizer."""
    if certificate_of_merged(run) is not None:
        model, tokenizer = load_variant(run, classifier, MERGED)
        return model.eval(), tokenizer
    name = classifier.base_model_name_or_path
    refuse_quantised(model_config(name, hub_commit(classifier.base_revision)), name)
    base = load_adapter_base(run, classifier)
    model = load_adapter(run, base)
    if METHODS[run.config().method].cannot_merge:
        return model.eval(), base.tokenizer
    return merged_weights(run, model), base.tokenizer


def _write_float32(folder: Path, classifier: Classifier, model: nn.Module, tokenizer: Any) -> None:
    """The float32 file, and beside it the tokenizer and the configuration."""
    tokenizer.model_max_length = classifier.max_length  # so that whoever loads it cuts texts as in training
    tokenizer.save_pretrained(folder)
    (folder / FP32_FILE).parent.mkdir()
    weights_apart = write_fp32(model, tokenizer, folder / FP32_FILE)
    config = copy.deepcopy(model.config)
    config.architectures = [type(getattr(model, "get_base_model", lambda: model)()).__name__]
    if weights_apart:
        told = {"use_external_data_format": {Path(FP32_FILE).name: True}}
        config.update({"transformers.js_config": told})
    config.save_pretrained(folder)


def _judged(folder: Path, judge: Judge, max_drop: float, progress: Progress) -> dict[str, dict[str, Any]]:
    """The report's `original`, `fp32` and `int8`; an int8 file that loses too much is taken away."""
    exact = _load(folder, FP32_FILE)
    logits = exact.logits(*judge.asked, _part(progress, 0.45, 0.65, "ONNX, float32"))
    _refuse_another_model(judge.reference, logits)
    fp32 = {"file": FP32_FILE, "bytes": _size(folder, FP32_FILE), **judge.compare(logits, max_drop)}
    int8, rounded = _judged_int8(folder, judge, max_drop, progress)
    progress(0.95, "Timing all three")
    speeds = judge.rows_per_second({"fp32": exact.logits, "int8": rounded.logits})
    if not int8["kept"]:
        (folder / INT8_FILE).unlink()
    found = {"original": judge.original, "fp32": {**fp32, "kept": True}, "int8": int8}
    return {name: {**one, **speeds[name]} for name, one in found.items()}


def _judged_int8(
    folder: Path, judge: Judge, max_drop: float, progress: Progress
) -> tuple[dict[str, Any], OnnxModel]:
    """The first of two int8 files that is within the drop, or else the second; what is said of it, and it."""
    for start, left_out in ((0.65, []), (0.8, narrowing_matrices(folder / FP32_FILE))):
        write_int8(folder / FP32_FILE, folder / INT8_FILE, left_out)
        rounded = _load(folder, INT8_FILE)
        logits = rounded.logits(*judge.asked, _part(progress, start, start + 0.15, "ONNX, int8"))
        found = judge.compare(logits, max_drop)
        if found["within"]:
            break
    size = _size(folder, INT8_FILE)
    own = {"file": INT8_FILE, "bytes": size, "float32_matrices": len(left_out), "kept": found["within"]}
    return {**own, **found}, rounded


def _load(folder: Path, file: str) -> OnnxModel:
    return load_onnx(folder, file, torch.get_num_threads())


def _size(folder: Path, file: str) -> int:
    """Bytes of a file, with those of its weights where they lie apart."""
    return sum(part.stat().st_size for part in folder.glob(f"{file}*"))


def _part(progress: Progress, start: float, end: float, words: str) -> Callable[[float], None]:
    return lambda share: progress(start + share * (end - start), f"{words}: logits of the evaluation rows")


def _refuse_another_model(reference: np.ndarray, logits: np.ndarray) -> None:
    largest = float(np.abs(reference - logits).max())
    allowed = FP32_TOLERANCE * max(1.0, float(np.abs(reference).max()))
    if not largest <= allowed:  # true for NaN too
        raise ExportError(
            f"The ONNX file is not the trained model: a logit differs by {largest:.2g} (at most "
            f"{allowed:.2g} is allowed); nothing is kept."
        )
