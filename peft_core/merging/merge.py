"""Merge an adapter into its base model and certify the result: python -m peft_core.merge RUN_DIR."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_core.errors import MergeError, PeftCoreError
from peft_core.files.atomic import folder_lock, remove_tree, translate_disk_errors, write_json
from peft_core.files.manifests import entries_of
from peft_core.inference.batching import batched_logits
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule, update_decision
from peft_core.inference.loading import load_adapter, load_adapter_base, merged_weights
from peft_core.merging.certificate import (
    CERTIFICATE_FILE,
    NOT_MODEL_FILES,
    MergeCertificate,
    certificate_of_merged,
    sha256_of_adapter,
    tolerance,
)
from peft_core.methods.registry import METHODS, bits_of
from peft_core.models.encoder import model_config, refuse_quantized
from peft_core.models.modules import HEAD_NAMES
from peft_core.models.quantization import FULL
from peft_core.models.sources import hub_commit
from peft_core.problem_types import label_flips
from peft_core.progress import Progress, no_progress
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_texts
from peft_core.training.garbage import resume_collection


@dataclass(frozen=True)
class _Comparison:
    """Float32 logits (rows, labels) and head hashes of the adapter and of the merged model.

    `quantized` are the logits on the quantized base that the adapter was trained on; None for 32 bits.
    """

    adapter: np.ndarray
    merged: np.ndarray
    reloaded: np.ndarray
    head_sha256: str
    head_sha256_reloaded: str
    labels_reloaded: tuple[str, ...]
    quantized: np.ndarray | None


def merge(run_dir: str | Path, progress: Progress = no_progress) -> MergeCertificate:
    """Write `merged/` with its certificate, or nothing; a valid merge of the present adapter is kept.

    Args:
        run_dir: The run's folder.
        progress: Called with the share done, from 0 to 1, and a description of the step.

    Raises:
        RunError: If the run has no adapter or has lost its test rows.
        ModelError: If the base model has changed or is quantized.
        MergeError: If the method cannot merge, or the certificate does not hold.
    """
    run = Run(Path(run_dir))
    classifier = Classifier.read(run)
    adapter_sha256 = sha256_of_adapter(run)
    earlier = certificate_of_merged(run)
    if earlier is not None:
        update_decision(run, run.merged)
        return earlier
    _refuse_unmergeable(run)
    texts, pairs = load_evaluation_texts(run)
    name, revision = classifier.base_model_name_or_path, classifier.base_revision
    refuse_quantized(model_config(name, hub_commit(revision)), name)
    progress(0.0, "Loading the base model and the adapter")
    _remove_earlier(run)
    with run.new_folder(run.merged) as staging:
        comparison = _merge_into(
            staging, run, classifier, _logits_function(texts, pairs, classifier, progress)
        )
        certificate = _certificate(run, classifier, comparison, adapter_sha256)
        certificate = replace(certificate, files=entries_of(staging, without=NOT_MODEL_FILES))
        write_json(staging / CERTIFICATE_FILE, certificate.to_dict())
        if not certificate.holds:
            raise MergeError(
                f"The merged model differs from the adapter: {'; '.join(certificate.problems)}; nothing was "
                "saved."
            )
    update_decision(run, run.merged)
    progress(1.0, "Merged")
    return certificate


def _remove_earlier(run: Run) -> None:
    """Remove a merged model that is damaged or of an earlier adapter, starting with its certificate."""
    with translate_disk_errors(), folder_lock(run.folder):
        for path in (run.certificate, run.folder / CERTIFICATE_FILE):  # the second is of schema version 0
            path.unlink(missing_ok=True)
        remove_tree(run.merged)


def _logits_function(
    texts: list[str], pairs: list[str] | None, classifier: Classifier, progress: Progress
) -> Callable[..., np.ndarray]:
    """Return a function (model, tokenizer, progress so far, model description) -> logits of the texts."""

    def logits(model: Any, tokenizer: Any, start: float, description: str) -> np.ndarray:
        message = f"{description}: logits of {len(texts):,} rows"
        return batched_logits(
            model.eval(),
            tokenizer,
            texts,
            classifier.max_length,
            lambda share: progress(start + 0.22 * share, message),
            text_pairs=pairs,
        )

    return logits


def _merge_into(
    folder: Path, run: Run, classifier: Classifier, logits: Callable[..., np.ndarray]
) -> _Comparison:
    """Save the merged model into a folder, and compare both it and its reloaded copy with the adapter."""
    quantized = _quantized_logits(run, classifier, logits)
    base = load_adapter_base(run, classifier)
    model = load_adapter(run, base)
    adapter, head = logits(model, base.tokenizer, 0.25, "Adapter"), _head_sha256(model)
    merged = merged_weights(run, model)
    in_memory = logits(merged, base.tokenizer, 0.5, "Merged")
    merged.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    DecisionRule.read(run).write(folder, classifier.labels)
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
    from_disk = logits(reloaded, AutoTokenizer.from_pretrained(folder), 0.75, "Merged, loaded again")
    labels = tuple(reloaded.config.id2label.values())
    return _Comparison(adapter, in_memory, from_disk, head, _head_sha256(reloaded), labels, quantized)


def _quantized_logits(
    run: Run, classifier: Classifier, logits: Callable[..., np.ndarray]
) -> np.ndarray | None:
    bits = bits_of(run.config().to_dict())
    if bits == FULL:
        return None
    base = load_adapter_base(run, classifier, bits)
    return logits(load_adapter(run, base), base.tokenizer, 0.0, f"Adapter on the {bits}-bit base model")


def _certificate(
    run: Run, classifier: Classifier, comparison: _Comparison, adapter_sha256: str
) -> MergeCertificate:
    problem_type, adapter, quantized = classifier.problem_type, comparison.adapter, comparison.quantized
    return MergeCertificate(
        run_id=run.run_id,
        rows=len(adapter),
        max_logit_diff_merged=_max_abs_difference(adapter, comparison.merged),
        max_logit_diff_reloaded=_max_abs_difference(adapter, comparison.reloaded),
        label_flips=label_flips(problem_type, adapter, comparison.merged, comparison.reloaded),
        tolerance=tolerance(problem_type, adapter),
        head_sha256=comparison.head_sha256,
        head_sha256_reloaded=comparison.head_sha256_reloaded,
        labels=classifier.labels,
        labels_reloaded=comparison.labels_reloaded,
        adapter_sha256=adapter_sha256,
        base_model_name_or_path=classifier.base_model_name_or_path,
        base_revision=classifier.base_revision,
        created=time.time(),
        problem_type=problem_type,
        trained_in_bits=bits_of(run.config().to_dict()),
        max_logit_diff_quantised=None if quantized is None else _max_abs_difference(adapter, quantized),
        label_flips_quantised=(None if quantized is None else label_flips(problem_type, adapter, quantized)),
    )


def _refuse_unmergeable(run: Run) -> None:
    method = METHODS[run.config().method]
    if method.cannot_merge:
        raise MergeError(
            f"{method.label} cannot be merged: {method.cannot_merge}; use the adapter beside its base model."
        )


def _max_abs_difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the largest absolute difference; `inf` if any value is NaN or infinite."""
    largest = np.abs(expected - actual).max()
    return float(largest) if np.isfinite(largest) else float("inf")


def _head_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of the classification head's parameters, for a PeftModel or a plain model."""
    head = {}
    for name, parameter in model.named_parameters():
        parts = [
            part
            for part in name.split(".")
            if part not in ("base_model", "model", "modules_to_save", "default")
        ]
        if "original_module" not in parts and any(part.endswith(HEAD_NAMES) for part in parts):
            head[".".join(parts)] = parameter
    digest = hashlib.sha256()
    for name in sorted(head):
        digest.update(name.encode() + head[name].detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def main(arguments: list[str]) -> int:
    """Merge the run in the given folder; return 0, or 2 after one line on stderr."""
    if len(arguments) != 1:
        print("usage: python -m peft_core.merge RUN_DIR", file=sys.stderr)
        return 2
    resume_collection()
    try:
        with Run(Path(arguments[0])).detect_deletion():
            certificate = merge(arguments[0], lambda share, step: print(f"{share:4.0%} {step}", flush=True))
    except PeftCoreError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(certificate.to_dict(), indent=2, ensure_ascii=False))
    return 0
