"""Evaluate a trained model on its test rows: metrics, baseline, error details and the rows themselves."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from peft_core.data.labelled import LabeledSplits
from peft_core.inference.batching import batched_logits
from peft_core.inference.metrics import confusion_matrix, headline_interval, label_scores, task_metrics
from peft_core.problem_types import MULTI, REGRESSION, SINGLE, decide, headline, join_labels
from peft_core.runs.evaluation_rows import write_evaluation_rows
from peft_core.training.losses import LabelScale, Loss, eval_loss

POINTS = 500  # most points of predicted against true numbers


def measure(
    folder: Path,
    model: Any,
    tokenizer: Any,
    data: LabeledSplits,
    max_length: int,
    loss: Loss | None = None,
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluate a model on all test and validation rows, and write the rows with their logits into `folder`.

    Args:
        folder: Receives `evaluation.parquet`, and `validation.parquet` if there are validation rows.
        model: The trained classifier.
        tokenizer: Its tokenizer.
        data: The run's data.
        max_length: Tokens after which a text is truncated.
        loss: Replaces the model's own loss if given.
        on_progress: Called after each batch; its exceptions propagate.

    Returns:
        `problem_type`, the metrics, `<headline>_interval`, `eval_loss`, `baseline`, row counts, and
        `validation` (metrics, `eval_loss` and `rows` of the validation rows, if any). Single label also:
        `labels`, `train_label_shares`, `per_label`, `confusion_matrix`; multi-label: the same without the
        matrix; regression: `points`, `train_label_range`.

    Raises:
        ModelError: If the model returns NaN.
    """
    model.eval()
    problem_type = data.problem_type
    true, train = label_array(data.eval, problem_type), label_array(data.train, problem_type)
    logits = _logits(model, tokenizer, data.eval, max_length, on_progress)
    predicted = decide(logits, problem_type)
    labels = tuple(model.config.id2label.values())
    write_evaluation_rows(folder / "evaluation.parquet", _columns(data.eval), logits, problem_type)
    validation: dict[str, Any] = {}
    if len(data.validation):
        validation_logits = _logits(model, tokenizer, data.validation, max_length, on_progress)
        write_evaluation_rows(
            folder / "validation.parquet", _columns(data.validation), validation_logits, problem_type
        )
        validation = {"validation": _validation_metrics(data, validation_logits, train, loss)}
    return {
        "problem_type": problem_type,
        **task_metrics(problem_type, predicted, true),
        f"{headline(problem_type)}_interval": headline_interval(
            problem_type, predicted, true, on_progress=on_progress
        ),
        "eval_loss": eval_loss(problem_type, _loss_inputs(problem_type, logits, train), true, loss),
        "baseline": baseline(problem_type, train, true, labels),
        **_details(problem_type, predicted, true, train, labels),
        "text_pair": "text_pair" in data.eval.column_names,
        "train_rows": len(data.train),
        "eval_rows": len(data.eval),
        **validation,
    }


def _validation_metrics(
    data: LabeledSplits, logits: np.ndarray, train: np.ndarray, loss: Loss | None
) -> dict[str, Any]:
    """Return the metrics, `eval_loss` and the number of `rows` of the validation split."""
    problem_type, true = data.problem_type, label_array(data.validation, data.problem_type)
    return {
        **task_metrics(problem_type, decide(logits, problem_type), true),
        "eval_loss": eval_loss(problem_type, _loss_inputs(problem_type, logits, train), true, loss),
        "rows": len(data.validation),
    }


def baseline(
    problem_type: str, train: np.ndarray, true: np.ndarray, labels: tuple[str, ...]
) -> dict[str, Any]:
    """Return the best constant prediction, chosen on the training rows, and its metrics on the test rows.

    `label` is the most frequent label or label set as text, with its `indices`; for a regression the median
    (which minimizes the mean absolute error), also as `value`.
    """
    if problem_type == REGRESSION:
        median = float(np.median(train))
        return {
            "label": f"{median:.4g}",
            "value": median,
            **task_metrics(problem_type, np.full(len(true), median), true),
        }
    counts = Counter(map(tuple, train.tolist()) if problem_type == MULTI else train.tolist())
    most_frequent = max(sorted(counts.items()), key=lambda count: count[1])[0]
    predicted = np.broadcast_to(np.asarray(most_frequent), true.shape)
    indices = np.flatnonzero(most_frequent).tolist() if isinstance(most_frequent, tuple) else [most_frequent]
    return {
        "label": join_labels([labels[i] for i in indices]),
        "indices": indices,
        **task_metrics(problem_type, predicted, true),
    }


def label_array(rows: Dataset, problem_type: str) -> np.ndarray:
    """Return labels as `decide` does: indices (rows,), 0 and 1 (rows, labels), or float64 (rows,)."""
    return np.asarray(rows["label"][:], dtype=np.float64 if problem_type == REGRESSION else np.int64)


def _columns(rows: Dataset) -> dict[str, Any]:
    columns = rows.to_dict()
    assert isinstance(columns, dict)  # `to_dict` returns an iterator only if called with batched=True
    return columns


def _logits(
    model: Any, tokenizer: Any, rows: Dataset, max_length: int, on_progress: Callable[[], None]
) -> np.ndarray:
    pairs = rows["text_pair"][:] if "text_pair" in rows.column_names else None
    return batched_logits(
        model, tokenizer, rows["text"][:], max_length, lambda share: on_progress(), text_pairs=pairs
    )


def _loss_inputs(problem_type: str, logits: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return the outputs that the loss is computed from: standardized numbers for a regression."""
    if problem_type != REGRESSION:
        return logits
    scale = LabelScale.from_labels(train)
    return ((logits.astype(np.float64) - scale.mean) / scale.std).astype(np.float32)


def _details(
    problem_type: str, predicted: np.ndarray, true: np.ndarray, train: np.ndarray, labels: tuple[str, ...]
) -> dict[str, Any]:
    if problem_type == REGRESSION:
        points = {"points": _points(predicted, true)}
        return {**points, "train_label_range": [float(train.min()), float(train.max())]}
    counts = np.bincount(train, minlength=len(labels)) if problem_type == SINGLE else train.sum(0)
    scores = label_scores(predicted, true, len(labels))
    details: dict[str, Any] = {
        "labels": list(labels),
        "train_label_shares": {name: float(n) / len(train) for name, n in zip(labels, counts, strict=True)},
        "per_label": [{"label": name, **row} for name, row in zip(labels, scores, strict=True)],
    }
    if problem_type == SINGLE:
        details["confusion_matrix"] = confusion_matrix(predicted, true, len(labels))
    return details


def _points(predicted: np.ndarray, true: np.ndarray) -> list[list[float]]:
    """Return pairs of true and predicted numbers; a seeded sample of POINTS pairs if there are more."""
    indices = np.arange(len(true))
    if len(indices) > POINTS:
        indices = np.sort(np.random.default_rng(0).choice(len(true), POINTS, replace=False))
    return np.stack([true[indices], predicted[indices]], axis=1).tolist()
