"""What a run measured on its test rows, by task: metrics, the baseline to beat, the errors, and the rows."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from peft_core.data.labelled import LabelledText
from peft_core.inference.batching import batched_logits
from peft_core.losses import LabelScale, Loss, eval_loss
from peft_core.metrics import confusion_matrix, headline_interval, label_scores, task_metrics
from peft_core.problems import MULTI, REGRESSION, SINGLE, decide, headline, joined
from peft_core.rows import write_rows

POINTS = 500  # of predicted against true, at most


def measure(
    folder: Path,
    model: Any,
    tokenizer: Any,
    data: LabelledText,
    max_length: int,
    loss: Loss | None = None,
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The result on every test row, beside a baseline; the rows are written into the folder.

    `problem_type`, the task's metrics, `<headline>_interval`, `eval_loss`, `baseline`, row counts,
    `validation` (metrics, `eval_loss` and `rows` of the validation rows, if there are any), and
    one label: `labels`, `train_label_shares`, `per_label`, `confusion_matrix`;
    several: the same without the matrix; a number: `points`, `train_label_range`.
    `on_progress` is called after each batch, and what it raises passes. Raises ModelError for a model that
    returns NaN.
    """
    model.eval()
    task = data.problem_type
    true, train = label_array(data.eval, task), label_array(data.train, task)
    logits = _logits(model, tokenizer, data.eval, max_length, on_progress)
    predicted = decide(logits, task)
    labels = tuple(model.config.id2label.values())
    write_rows(folder / "evaluation.parquet", data.eval.to_dict(), logits, task)
    measured: dict[str, Any] = {}
    if len(data.validation):
        validation = _logits(model, tokenizer, data.validation, max_length, on_progress)
        write_rows(folder / "validation.parquet", data.validation.to_dict(), validation, task)
        measured = {"validation": _validation_metrics(data, validation, train, loss)}
    return {
        "problem_type": task,
        **task_metrics(task, predicted, true),
        f"{headline(task)}_interval": headline_interval(task, predicted, true, on_progress=on_progress),
        "eval_loss": eval_loss(task, _as_trained(task, logits, train), true, loss),
        "baseline": baseline(task, train, true, labels),
        **_details(task, predicted, true, train, labels),
        "text_pair": "text_pair" in data.eval.column_names,
        "train_rows": len(data.train),
        "eval_rows": len(data.eval),
        **measured,
    }


def _validation_metrics(
    data: LabelledText, logits: np.ndarray, train: np.ndarray, loss: Loss | None
) -> dict[str, Any]:
    """The problem type's metrics, `eval_loss` and `rows` of every validation row."""
    problem_type, true = data.problem_type, label_array(data.validation, data.problem_type)
    return {
        **task_metrics(problem_type, decide(logits, problem_type), true),
        "eval_loss": eval_loss(problem_type, _as_trained(problem_type, logits, train), true, loss),
        "rows": len(data.validation),
    }


def baseline(task: str, train: np.ndarray, true: np.ndarray, labels: tuple[str, ...]) -> dict[str, Any]:
    """The best constant answer, known from the training rows, and what it reaches on the test rows.

    `label` is the most frequent label or set of labels as text, with its `indices`; or the median (it has the
    least mean error), also as `value`.
    """
    if task == REGRESSION:
        middle = float(np.median(train))
        return {
            "label": f"{middle:.4g}",
            "value": middle,
            **task_metrics(task, np.full(len(true), middle), true),
        }
    counts = Counter(map(tuple, train.tolist()) if task == MULTI else train.tolist())
    most = max(sorted(counts), key=counts.get)
    answers = np.broadcast_to(np.asarray(most), true.shape)
    given = np.flatnonzero(most).tolist() if task == MULTI else [most]
    return {
        "label": joined([labels[i] for i in given]),
        "indices": given,
        **task_metrics(task, answers, true),
    }


def label_array(rows: Dataset, task: str) -> np.ndarray:
    """Labels as `decide` gives them: indices (rows,), 0 and 1 (rows, labels), or float64 (rows,)."""
    return np.asarray(rows["label"][:], dtype=np.float64 if task == REGRESSION else np.int64)


def _logits(
    model: Any, tokenizer: Any, rows: Dataset, max_length: int, on_progress: Callable[[], None]
) -> np.ndarray:
    pairs = rows["text_pair"][:] if "text_pair" in rows.column_names else None
    return batched_logits(
        model, tokenizer, rows["text"][:], max_length, lambda share: on_progress(), text_pairs=pairs
    )


def _as_trained(task: str, logits: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The outputs that the loss is of: standardised numbers in a regression."""
    if task != REGRESSION:
        return logits
    scale = LabelScale.of(train)
    return ((logits.astype(np.float64) - scale.mean) / scale.std).astype(np.float32)


def _details(
    task: str, predicted: np.ndarray, true: np.ndarray, train: np.ndarray, labels: tuple[str, ...]
) -> dict[str, Any]:
    if task == REGRESSION:
        points = {"points": _points(predicted, true)}
        return {**points, "train_label_range": [float(train.min()), float(train.max())]}
    held = np.bincount(train, minlength=len(labels)) if task == SINGLE else train.sum(0)
    scored = label_scores(predicted, true, len(labels))
    found: dict[str, Any] = {
        "labels": list(labels),
        "train_label_shares": {name: float(n) / len(train) for name, n in zip(labels, held, strict=True)},
        "per_label": [{"label": name, **row} for name, row in zip(labels, scored, strict=True)],
    }
    if task == SINGLE:
        found["confusion_matrix"] = confusion_matrix(predicted, true, len(labels))
    return found


def _points(predicted: np.ndarray, true: np.ndarray) -> list[list[float]]:
    """Pairs of true and predicted number, a seeded choice where there are many."""
    chosen = np.arange(len(true))
    if len(chosen) > POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(true), POINTS, replace=False))
    return np.stack([true[chosen], predicted[chosen]], axis=1).tolist()
