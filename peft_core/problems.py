"""The three tasks: what each is judged by, and what a model's raw outputs decide in each."""

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
THRESHOLD = 0.5  # a label of several is given from this probability on
NO_LABEL = "no label"  # what people read where a text has none of several


def headline(problem_type: str) -> str:
    """The metric that is shown first; higher is better in every task."""
    return METRICS[problem_type][0]


def scores(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Probabilities (rows sum to 1 for one label, each from 0 to 1 for several), or the numbers themselves.

    Takes and returns shape (rows, outputs), as float64.
    """
    raw = np.asarray(logits, dtype=np.float64)
    if problem_type == REGRESSION:
        return raw
    if problem_type == MULTI:
        return np.exp(-np.logaddexp(0.0, -raw))  # 1 / (1 + e^-x) without an overflow
    shifted = np.exp(raw - raw.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def decide(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """What (rows, outputs) of raw outputs decide.

    One label: indices (rows,), int. Several: 0 or 1 (rows, labels), int. A number: (rows,), float64.
    """
    raw = np.asarray(logits)
    if problem_type == SINGLE:
        return raw.argmax(-1)
    if problem_type == MULTI:
        return (raw >= np.log(THRESHOLD / (1 - THRESHOLD))).astype(np.int64)
    return raw[:, 0].astype(np.float64)


def label_flips(problem_type: str, expected: np.ndarray, *others: np.ndarray) -> int:
    """Rows of raw outputs whose decision differs from the expected one in any of the others.

    A number has no decision to flip: 0 for a regression, where the difference alone counts.
    """
    if problem_type == REGRESSION:
        return 0
    wanted = decide(expected, problem_type)
    differs = [(wanted != decide(other, problem_type)).reshape(len(wanted), -1).any(-1) for other in others]
    return int(np.any(differs, axis=0).sum())


def joined(names: Sequence[str]) -> str:
    """Several labels as one text."""
    return ", ".join(names) or NO_LABEL
