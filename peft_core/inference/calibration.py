"""Measure the calibration of a run's probabilities, and fit temperature, thresholds and abstention.

Everything is computed from the logits stored with a run: decision rules are fitted to its validation rows and
evaluated on its test rows.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from peft_core.errors import RunError
from peft_core.inference.decision import DecisionRule
from peft_core.inference.metrics import task_metrics
from peft_core.problem_types import MULTI, REGRESSION, SINGLE, headline
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import TEST, VALIDATION, EvaluationRows, load_evaluation_rows

BINS = 15  # of the reliability diagram, equally wide, as in Guo et al. 2017
MIN_ROWS = 30  # fewest validation rows for a fit
_POINTS = 60  # of the coverage curve
_GRID = np.round(np.arange(0.05, 0.96, 0.01), 2)  # candidate thresholds


def report(run: Run, decision_rule: DecisionRule) -> dict[str, Any]:
    """Evaluate a decision rule on the run's test rows, beside the default rule.

    Returns:
        JSON types: `rows`, `headline`, `plain` (default rule) and `chosen` (this rule), each with `metrics`
        of the answered rows, `coverage` (their share), `ece`, `brier`, `log_loss` and `bins` from
        `reliability`; `curve` from `coverage_curve`.

    Raises:
        RunError: If the run is a regression or has lost its rows.
    """
    problem_type = _problem_type(run)
    rows = load_evaluation_rows(run, TEST)
    return {
        "rows": len(rows),
        "headline": headline(problem_type),
        "plain": _evaluate(rows, DecisionRule(), problem_type),
        "chosen": _evaluate(rows, decision_rule, problem_type),
        "curve": coverage_curve(rows, decision_rule, problem_type),
    }


def suggest(run: Run, *, thresholds: bool = False, at_least: float | None = None) -> DecisionRule:
    """Fit a decision rule to the run's validation rows.

    Args:
        run: The run.
        thresholds: Whether to fit the thresholds with the best (macro-)F1 as well as the temperature with the
            lowest log loss.
        at_least: Accuracy of the answers, from 0 to 1, to reach with the lowest possible `abstain_below`.

    Raises:
        RunError: If there are too few validation rows, or no confidence reaches that accuracy.
    """
    problem_type, rows = _problem_type(run), load_evaluation_rows(run, VALIDATION)
    if len(rows) < MIN_ROWS:
        raise RunError(
            f"The run {run.run_id!r} has {len(rows)} validation rows, too few for calibration; at least "
            f"{MIN_ROWS} are needed."
        )
    decision_rule = DecisionRule(temperature=fit_temperature(rows.logits, rows.labels, problem_type))
    if thresholds:
        decision_rule = replace(decision_rule, thresholds=best_thresholds(rows, decision_rule, problem_type))
    if at_least is not None:
        decision_rule = replace(
            decision_rule, abstain_below=least_confidence(rows, decision_rule, problem_type, at_least)
        )
    return decision_rule


def fit_temperature(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """Return the temperature, from 0.05 to 20, with the lowest mean log loss (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        return log_loss(
            DecisionRule(float(np.exp(log_temperature))).probabilities(logits, problem_type),
            labels,
            problem_type,
        )

    optimum = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return round(float(np.exp(optimum.x)), 4)


def log_loss(probabilities: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """Return the mean negative log probability of the truth, in nats; multi-label: over all labels."""
    if problem_type == SINGLE:
        true = np.take_along_axis(probabilities, labels[:, None], -1)
    else:
        true = np.where(labels == 1, probabilities, 1 - probabilities)
    return float(-np.log(np.clip(true, 1e-12, None)).mean())


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean distance of confidence and accuracy over the bins, weighted by their rows; 0 to 1."""
    return sum(
        row["count"] / len(confidence) * abs(row["confidence"] - row["accuracy"])
        for row in reliability(confidence, correct)
    )


def reliability(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Return the non-empty bins: `low`, `high`, `count`, mean `confidence`, `accuracy`."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    rows = []
    for i in range(BINS):
        inside = bins == i
        if inside.any():
            rows.append(
                {
                    "low": i / BINS,
                    "high": (i + 1) / BINS,
                    "count": int(inside.sum()),
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(correct[inside].mean()),
                }
            )
    return rows


def best_thresholds(
    rows: EvaluationRows, decision_rule: DecisionRule, problem_type: str
) -> tuple[float, ...]:
    """Return one threshold per label, with the best F1 of each label (multi-label) or the best macro-F1.

    Ties go to the threshold nearest to the default rule's.
    """
    probabilities = decision_rule.probabilities(rows.logits, problem_type)
    if problem_type == MULTI:
        return tuple(
            _best_threshold(probabilities[:, i], rows.labels[:, i]) for i in range(probabilities.shape[1])
        )
    labels = probabilities.shape[1]
    if labels == 2:
        pairs = [(1 - second, second) for second in _nearest_first(_GRID, 0.5)]
        return max(pairs, key=lambda pair: _macro_f1(probabilities, rows.labels, pair))
    thresholds = np.full(labels, 0.5)
    for _ in range(2):  # coordinate ascent, two rounds
        for i in range(labels):
            candidates = [
                np.where(np.arange(labels) == i, threshold, thresholds)
                for threshold in _nearest_first(_GRID, thresholds[i])
            ]
            thresholds = max(candidates, key=lambda t: _macro_f1(probabilities, rows.labels, t))
    return tuple(float(threshold) for threshold in thresholds)


def coverage_curve(
    rows: EvaluationRows, decision_rule: DecisionRule, problem_type: str
) -> list[dict[str, float]]:
    """Return accuracy against coverage as `abstain_below` varies, most confident answers first.

    Each point has `threshold` (the confidence), `coverage` (share of rows answered) and `accuracy`
    (multi-label: the share of texts with all labels correct).
    """
    confidence, accuracy, ends = _rank_by_confidence(rows, decision_rule, problem_type)
    points = ends[np.unique(np.linspace(0, len(ends) - 1, _POINTS).round().astype(int))]
    return [
        {
            "threshold": float(confidence[i]),
            "coverage": (i + 1) / len(confidence),
            "accuracy": float(accuracy[i]),
        }
        for i in points
    ]


def _problem_type(run: Run) -> str:
    problem_type = run.result()["problem_type"]
    if problem_type == REGRESSION:
        raise RunError(f"The run {run.run_id!r} predicts numbers, which have no probability to calibrate.")
    return problem_type


def _evaluate(rows: EvaluationRows, decision_rule: DecisionRule, problem_type: str) -> dict[str, Any]:
    probabilities = decision_rule.probabilities(rows.logits, problem_type)
    answered = ~decision_rule.abstains(rows.logits, problem_type)
    predicted = decision_rule.decide(rows.logits, problem_type)
    confidence, correct = _confidence_and_truth(probabilities, rows.labels, problem_type)
    metrics = task_metrics(problem_type, predicted[answered], rows.labels[answered]) if answered.any() else {}
    return {
        "metrics": metrics,
        "coverage": float(answered.mean()),
        "ece": expected_calibration_error(confidence, correct),
        "brier": brier_score(probabilities, rows.labels, problem_type),
        "log_loss": log_loss(probabilities, rows.labels, problem_type),
        "bins": reliability(confidence, correct),
    }


def _confidence_and_truth(
    probabilities: np.ndarray, labels: np.ndarray, problem_type: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and correctness (0 or 1) of the most probable label; multi-label: of each label."""
    if problem_type == SINGLE:
        return probabilities.max(-1), (probabilities.argmax(-1) == labels).astype(np.float64)
    predicted = probabilities >= 0.5
    confidence = np.where(predicted, probabilities, 1 - probabilities)
    return confidence.ravel(), (predicted == (labels == 1)).ravel().astype(np.float64)


def brier_score(probabilities: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """Return the mean squared error of the probabilities, summed over labels; multi-label: averaged."""
    if problem_type == SINGLE:
        return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(-1).mean())
    return float(((probabilities - labels) ** 2).mean())


def _best_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    if not labels.any():
        return 0.5
    return float(max(_nearest_first(_GRID, 0.5), key=lambda t: _f1(probabilities >= t, labels == 1)))


def _nearest_first(grid: np.ndarray, threshold: float) -> np.ndarray:
    """Sort the grid by distance, so that `max`, which keeps the first of equals, prefers the nearest."""
    return grid[np.argsort(np.abs(grid - threshold), kind="stable")]


def _f1(predicted: np.ndarray, true: np.ndarray) -> float:
    hits = (predicted & true).sum()
    return float(2 * hits / max(1, predicted.sum() + true.sum()))


def _macro_f1(probabilities: np.ndarray, labels: np.ndarray, thresholds: ArrayLike) -> float:
    predicted = (probabilities / np.asarray(thresholds)).argmax(-1)
    return float(np.mean([_f1(predicted == i, labels == i) for i in np.unique(labels)]))


def least_confidence(
    rows: EvaluationRows, decision_rule: DecisionRule, problem_type: str, at_least: float
) -> float:
    """Return the lowest confidence (0 to 1) from which on the accuracy is `at_least`; RunError if none is."""
    confidence, accuracy, ends = _rank_by_confidence(rows, decision_rule, problem_type)
    sufficient = [i for i in ends if accuracy[i] >= at_least]
    if not sufficient:
        raise RunError(
            f"No minimum confidence gives an accuracy of {at_least:.0%} on the validation rows; the highest "
            f"is {max(accuracy[ends]):.0%}. Choose a lower accuracy."
        )
    last = max(sufficient)
    return 0.0 if last == len(confidence) - 1 else float(np.floor(confidence[last] * 1e4) / 1e4)


class _Ranking(NamedTuple):
    """Rows sorted by falling confidence.

    Attributes:
        confidence: Of each row.
        accuracy: Share of correct answers up to each row.
        ends: Index of the last row of each confidence: rows of equal confidence are answered together or not
            at all.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    ends: np.ndarray


def _rank_by_confidence(rows: EvaluationRows, decision_rule: DecisionRule, problem_type: str) -> _Ranking:
    predicted = decision_rule.decide(rows.logits, problem_type)
    correct = predicted == rows.labels if problem_type == SINGLE else (predicted == rows.labels).all(-1)
    confidence = decision_rule.confidence(rows.logits, problem_type)
    order = np.argsort(-confidence, kind="stable")
    confidence, accuracy = confidence[order], np.cumsum(correct[order]) / np.arange(1, len(order) + 1)
    ends = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    return _Ranking(confidence, accuracy, ends)
