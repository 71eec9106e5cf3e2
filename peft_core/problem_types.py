"""The three problem types: the metrics of each, and how logits become scores and predictions."""

from collections.abc import Sequence

import numpy as np

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
METRICS = {
    SINGLE: ("accuracy", "macro_f1", "weighted_f1", "mcc"),
    MULTI: ("micro_f1", "macro_f1", "subset_accuracy"),
    REGRESSION: ("spearman", "pearson", "mae", "rmse"),
}
TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "mcc": "MCC",
    "micro_f1": "micro-F1",
    "subset_accuracy": "all labels right",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "mae": "mean error",
    "rmse": "RMSE",
}
LOWER_IS_BETTER = ("loss", "mae", "rmse")
THRESHOLD = 0.5  # multi-label: a label is predicted from this probability on
NO_LABEL = "no label"  # multi-label: shown for a text without labels


def headline(problem_type: str) -> str:
    """Return the name of the main metric, for which higher is better."""
    return METRICS[problem_type][0]


def scores(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Convert logits to probabilities; a regression's outputs are returned unchanged.

    Args:
        logits: Shape (rows, outputs).
        problem_type: Softmax for a single label, sigmoid for multi-label.

    Returns:
        float64 of shape (rows, outputs).
    """
    raw = np.asarray(logits, dtype=np.float64)
    if problem_type == REGRESSION:
        return raw
    if problem_type == MULTI:
        return np.exp(-np.logaddexp(0.0, -raw))  # 1 / (1 + e^-x) without an overflow
    shifted = np.exp(raw - raw.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def decide(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Return the predictions that logits of shape (rows, outputs) stand for.

    Returns:
        Single label: label indices (rows,), int. Multi-label: 0 or 1 (rows, labels), int.
        Regression: numbers (rows,), float64.
    """
    raw = np.asarray(logits)
    if problem_type == SINGLE:
        return raw.argmax(-1)
    if problem_type == MULTI:
        return (raw >= np.log(THRESHOLD / (1 - THRESHOLD))).astype(np.int64)
    return raw[:, 0].astype(np.float64)


def label_flips(problem_type: str, expected: np.ndarray, *actual: np.ndarray) -> int:
    """Count the rows whose prediction from any of the `actual` logits differs from that of the expected ones.

    Always 0 for a regression, whose numbers are compared by their difference alone.
    """
    if problem_type == REGRESSION:
        return 0
    predicted = decide(expected, problem_type)
    differs = [
        (predicted != decide(logits, problem_type)).reshape(len(predicted), -1).any(-1) for logits in actual
    ]
    return int(np.any(differs, axis=0).sum())


def join_labels(names: Sequence[str]) -> str:
    """Join label names with commas; "no label" for none."""
    return ", ".join(names) or NO_LABEL
