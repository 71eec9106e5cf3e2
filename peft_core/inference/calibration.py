"""Whether probabilities mean what they say, and what to choose where they do not.

Everything is computed from the raw outputs that a run keeps: choices are made on its validation rows, and
what they bring is told by its test rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from peft_core.errors import RunError
from peft_core.inference.decision import Decision
from peft_core.metrics import task_metrics
from peft_core.problems import MULTI, REGRESSION, SINGLE, headline
from peft_core.rows import TEST, VALIDATION, JudgedRows, judged_rows
from peft_core.runs import Run

BINS = 15  # of the reliability diagram, equally wide, as in Guo et al. 2017
LEAST_ROWS = 30  # of validation, below which nothing is fitted
_POINTS = 60  # of the coverage curve
_GRID = np.round(np.arange(0.05, 0.96, 0.01), 2)  # thresholds that are tried


def report(run: Run, decision: Decision) -> dict[str, Any]:
    """What a decision is worth on the run's test rows, beside the plain rule, as JSON types.

    `rows`, `headline`, and for `plain` and `chosen`: `metrics` of the answered rows, `coverage` (their
    share), `ece`, `brier`, `log_loss`, `bins` as `reliability` gives them; and the `curve` of
    `coverage_curve`. Raises RunError for a regression, or where rows are lost.
    """
    task = _task(run)
    rows = judged_rows(run, TEST)
    return {
        "rows": len(rows),
        "headline": headline(task),
        "plain": _judged(rows, Decision(), task),
        "chosen": _judged(rows, decision, task),
        "curve": coverage_curve(rows, decision, task),
    }


def suggest(run: Run, *, thresholds: bool = False, at_least: float | None = None) -> Decision:
    """A decision from the run's validation rows.

    The temperature with the least log loss; with `thresholds` those with the best (macro-)F1; with
    `at_least` the lowest confidence from which on that share of the answers is right. Raises RunError where
    there are too few validation rows, or no bound reaches that share.
    """
    task, rows = _task(run), judged_rows(run, VALIDATION)
    if len(rows) < LEAST_ROWS:
        raise RunError(
            f"The run {run.run_id!r} has {len(rows)} validation rows, too few to choose by; at least "
            f"{LEAST_ROWS} are needed."
        )
    chosen = Decision(temperature=fit_temperature(rows.logits, rows.labels, task))
    if thresholds:
        chosen = replace(chosen, thresholds=best_thresholds(rows, chosen, task))
    if at_least is not None:
        chosen = replace(chosen, abstain_below=least_confidence(rows, chosen, task, at_least))
    return chosen


def fit_temperature(logits: np.ndarray, labels: np.ndarray, task: str) -> float:
    """The temperature, from 0.05 to 20, with the least mean log loss (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        return log_loss(Decision(float(np.exp(log_temperature))).probabilities(logits, task), labels, task)

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(found.x)), 4)


def log_loss(shares: np.ndarray, labels: np.ndarray, task: str) -> float:
    """Mean negative log probability of what is true, in nats; of several labels the mean of all labels."""
    if task == SINGLE:
        true = np.take_along_axis(shares, labels[:, None], -1)
    else:
        true = np.where(labels == 1, shares, 1 - shares)
    return float(-np.log(np.clip(true, 1e-12, None)).mean())


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The mean distance of confidence and accuracy over the bins, weighted by their rows, from 0 to 1."""
    return sum(
        row["count"] / len(confidence) * abs(row["confidence"] - row["accuracy"])
        for row in reliability(confidence, right)
    )


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """The bins that hold rows: `low`, `high`, `count`, mean `confidence`, `accuracy`."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    rows = []
    for i in range(BINS):
        inside = place == i
        if inside.any():
            rows.append(
                {
                    "low": i / BINS,
                    "high": (i + 1) / BINS,
                    "count": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                }
            )
    return rows


def best_thresholds(rows: JudgedRows, decision: Decision, task: str) -> tuple[float, ...]:
    """One threshold a label: the best F1 of each label of several, the best macro-F1 where one is given.

    Ties go to the threshold nearest to the plain rule's.
    """
    shares = decision.probabilities(rows.logits, task)
    if task == MULTI:
        return tuple(_best_of_label(shares[:, i], rows.labels[:, i]) for i in range(shares.shape[1]))
    labels = shares.shape[1]
    if labels == 2:
        tried = [(1 - second, second) for second in _nearest_first(_GRID, 0.5)]
        return max(tried, key=lambda pair: _macro_f1(shares, rows.labels, pair))
    chosen = np.full(labels, 0.5)
    for _ in range(2):  # one label after the other, twice round
        for i in range(labels):
            tries = [
                np.where(np.arange(labels) == i, value, chosen) for value in _nearest_first(_GRID, chosen[i])
            ]
            chosen = max(tries, key=lambda t: _macro_f1(shares, rows.labels, t))
    return tuple(float(value) for value in chosen)


def coverage_curve(rows: JudgedRows, decision: Decision, task: str) -> list[dict[str, float]]:
    """From all answers to the surest alone: `threshold`, `coverage`, and the share of right answers
    (`accuracy`; of several labels the share of texts with all labels right)."""
    sure, right, ends = _surest_first(rows, decision, task)
    places = ends[np.unique(np.linspace(0, len(ends) - 1, _POINTS).round().astype(int))]
    return [
        {"threshold": float(sure[i]), "coverage": (i + 1) / len(sure), "accuracy": float(right[i])}
        for i in places
    ]


def _task(run: Run) -> str:
    task = run.result()["problem_type"]
    if task == REGRESSION:
        raise RunError(f"The run {run.run_id!r} predicts numbers, which have no probability to calibrate.")
    return task


def _judged(rows: JudgedRows, decision: Decision, task: str) -> dict[str, Any]:
    shares = decision.probabilities(rows.logits, task)
    answered = ~decision.abstains(rows.logits, task)
    decided = decision.decide(rows.logits, task)
    sure, right = _calibrated_on(shares, rows.labels, task)
    metrics = task_metrics(task, decided[answered], rows.labels[answered]) if answered.any() else {}
    return {
        "metrics": metrics,
        "coverage": float(answered.mean()),
        "ece": expected_calibration_error(sure, right),
        "brier": brier_score(shares, rows.labels, task),
        "log_loss": log_loss(shares, rows.labels, task),
        "bins": reliability(sure, right),
    }


def _calibrated_on(shares: np.ndarray, labels: np.ndarray, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and truth that calibration compares: the likeliest label's, or every label's yes or no."""
    if task == SINGLE:
        return shares.max(-1), (shares.argmax(-1) == labels).astype(np.float64)
    given = shares >= 0.5
    return np.where(given, shares, 1 - shares).ravel(), (given == (labels == 1)).ravel().astype(np.float64)


def brier_score(shares: np.ndarray, labels: np.ndarray, task: str) -> float:
    """Mean squared distance of probabilities and truth: summed over labels, or their mean for several."""
    if task == SINGLE:
        return float(((shares - np.eye(shares.shape[1])[labels]) ** 2).sum(-1).mean())
    return float(((shares - labels) ** 2).mean())


def _best_of_label(shares: np.ndarray, labels: np.ndarray) -> float:
    if not labels.any():
        return 0.5
    return float(max(_nearest_first(_GRID, 0.5), key=lambda t: _f1(shares >= t, labels == 1)))


def _nearest_first(grid: np.ndarray, value: float) -> np.ndarray:
    """So that `max`, which keeps the first of equals, changes as little as it must."""
    return grid[np.argsort(np.abs(grid - value), kind="stable")]


def _f1(given: np.ndarray, true: np.ndarray) -> float:
    both = (given & true).sum()
    return float(2 * both / max(1, given.sum() + true.sum()))


def _macro_f1(shares: np.ndarray, labels: np.ndarray, thresholds: Sequence[float]) -> float:
    decided = (shares / np.asarray(thresholds)).argmax(-1)
    return float(np.mean([_f1(decided == i, labels == i) for i in np.unique(labels)]))


def least_confidence(rows: JudgedRows, decision: Decision, task: str, at_least: float) -> float:
    """The lowest confidence (0 to 1) from which on this share of the answers is right; RunError if none."""
    sure, right, ends = _surest_first(rows, decision, task)
    enough = [i for i in ends if right[i] >= at_least]
    if not enough:
        raise RunError(
            f"No confidence makes {at_least:.0%} of the answers right on the validation rows; the surest "
            f"reach {max(right[ends]):.0%}. Ask for less."
        )
    last = max(enough)
    return 0.0 if last == len(sure) - 1 else float(np.floor(sure[last] * 1e4) / 1e4)


def _surest_first(
    rows: JudgedRows, decision: Decision, task: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences in falling order, the share of right answers up to each, and the places where a confidence
    ends: rows of one confidence are answered together or not at all."""
    decided = decision.decide(rows.logits, task)
    right = decided == rows.labels if task == SINGLE else (decided == rows.labels).all(-1)
    confidence = decision.confidence(rows.logits, task)
    order = np.argsort(-confidence, kind="stable")
    sure, shares = confidence[order], np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    return sure, shares, np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
