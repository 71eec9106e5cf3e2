"""Evaluation metrics as `evaluate.Metric` subclasses, so that no metric script is downloaded."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import ArrayLike

from peft_core.problem_types import MULTI, REGRESSION, SINGLE

_INDICES = {"predictions": Value("int64"), "references": Value("int64")}
_SETS = {key: datasets.List(Value("int64")) for key in _INDICES}
_NUMBERS = {key: Value("float64") for key in _INDICES}


def _accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean(predicted == true))


def _macro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([row["f1"] for row in _by_index(predicted, true, np.union1d(predicted, true))]))


def _weighted_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    rows = _by_index(predicted, true, np.union1d(predicted, true))
    return float(np.average([row["f1"] for row in rows], weights=[row["support"] for row in rows]))


def _mcc(predicted: np.ndarray, true: np.ndarray) -> float:
    labels, indices = np.unique(np.concatenate([predicted, true]), return_inverse=True)
    p = np.bincount(indices[: len(predicted)], minlength=len(labels)).astype(float)
    t = np.bincount(indices[len(predicted) :], minlength=len(labels)).astype(float)
    n, hits = len(true), float(np.sum(predicted == true))
    spread = (n * n - p @ p) * (n * n - t @ t)
    return float((hits * n - p @ t) / np.sqrt(spread)) if spread > 0 else 0.0


def _micro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    positives = predicted.sum() + true.sum()
    return float(2 * np.sum(predicted & true) / positives) if positives else 0.0


def _macro_f1_of_sets(predicted: np.ndarray, true: np.ndarray) -> float:
    positives = predicted.sum(0) + true.sum(0)
    f1 = 2 * np.sum(predicted & true, 0)[positives > 0] / positives[positives > 0]
    return float(np.mean(f1)) if len(f1) else 0.0


def _subset_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean(np.all(predicted == true, axis=-1)))


def _pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(np.clip(_unit(predicted) @ _unit(true), -1.0, 1.0))


def _spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    return _pearson(_ranks(predicted), _ranks(true))


def _mae(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean(np.abs(predicted - true)))


def _rmse(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(predicted - true))))


Score = Callable[[np.ndarray, np.ndarray], float]


class _TaskMetric(evaluate.Metric):
    """Base class; `compute(predictions=, references=)` takes two non-empty lists of equal length."""

    key: ClassVar[str]
    columns: ClassVar[dict]
    score: ClassVar[Score]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "", citation="", features=Features(self.columns)
        )

    def _compute(
        self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs: Any
    ) -> dict[str, float]:
        return {self.key: type(self).score(np.asarray(predictions), np.asarray(references))}


class Accuracy(_TaskMetric):
    """Share of texts whose predicted label is correct, from 0 to 1."""

    key, columns, score = "accuracy", _INDICES, staticmethod(_accuracy)


class MacroF1(_TaskMetric):
    """Mean of F1 = 2 TP / (2 TP + FP + FN) over the labels that are true or predicted, from 0 to 1."""

    key, columns, score = "macro_f1", _INDICES, staticmethod(_macro_f1)


class WeightedF1(_TaskMetric):
    """Mean of F1 over the labels, weighted by their support (number of true instances), from 0 to 1."""

    key, columns, score = "weighted_f1", _INDICES, staticmethod(_weighted_f1)


class MCC(_TaskMetric):
    """Matthews correlation coefficient for any number of labels, from -1 to 1; 0 if either side is constant.

    Source: Gorodkin, Computational Biology and Chemistry 28 (2004).
    """

    key, columns, score = "mcc", _INDICES, staticmethod(_mcc)


class MicroF1(_TaskMetric):
    """F1 = 2 TP / (2 TP + FP + FN) counted over all labels of all texts; 0 if nothing is true or predicted.

    Takes rows of 0 and 1, one number per label.
    """

    key, columns, score = "micro_f1", _SETS, staticmethod(_micro_f1)


class MultiLabelMacroF1(_TaskMetric):
    """Mean of F1 over the labels that are true or predicted; 0 if none is. Takes rows of 0 and 1."""

    key, columns, score = "macro_f1", _SETS, staticmethod(_macro_f1_of_sets)


class SubsetAccuracy(_TaskMetric):
    """Share of texts whose predicted label set equals the true one, from 0 to 1. Takes rows of 0 and 1."""

    key, columns, score = "subset_accuracy", _SETS, staticmethod(_subset_accuracy)


class Spearman(_TaskMetric):
    """Spearman correlation (ties get their mean rank), from -1 to 1; 0 if either side is constant."""

    key, columns, score = "spearman", _NUMBERS, staticmethod(_spearman)


class Pearson(_TaskMetric):
    """Pearson correlation, from -1 to 1; 0 if either side is constant."""

    key, columns, score = "pearson", _NUMBERS, staticmethod(_pearson)


class MAE(_TaskMetric):
    """Mean absolute error, in the unit of the labels."""

    key, columns, score = "mae", _NUMBERS, staticmethod(_mae)


class RMSE(_TaskMetric):
    """Root mean squared error, in the unit of the labels."""

    key, columns, score = "rmse", _NUMBERS, staticmethod(_rmse)


_CLASSES: dict[str, tuple[type[_TaskMetric], ...]] = {
    SINGLE: (Accuracy, MacroF1, WeightedF1, MCC),
    MULTI: (MicroF1, MultiLabelMacroF1, SubsetAccuracy),
    REGRESSION: (Spearman, Pearson, MAE, RMSE),
}


def task_metrics(problem_type: str, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Compute every metric of a problem type, headline first, for predictions from `problem_types.decide`."""
    metrics: dict[str, float] = {}
    for metric in _CLASSES[problem_type]:
        predicted, true = np.asarray(predictions).tolist(), np.asarray(references).tolist()
        computed = metric(keep_in_memory=True).compute(predictions=predicted, references=true)
        assert computed is not None  # None comes from a distributed metric's other processes only
        metrics |= computed
    return metrics


def headline_interval(
    problem_type: str,
    predictions: np.ndarray,
    references: np.ndarray,
    *,
    seed: int = 0,
    on_progress: Callable[[], None] = lambda: None,
) -> list[float]:
    """Return the 95 % confidence interval of the headline metric: Wilson for accuracy, else the bootstrap.

    `on_progress` is called before each bootstrap sample is scored.

    Sources: Wilson, JASA 22 (1927); Efron, The Annals of Statistics 7 (1979).
    """
    rows = len(references)
    if problem_type == SINGLE:
        return _wilson(int(np.sum(predictions == references)), rows)
    score = _CLASSES[problem_type][0].score
    rng = np.random.default_rng(seed)
    n_resamples = max(100, min(1000, 10_000_000 // rows))  # fewer for many rows, where each takes long
    resamples = [rng.integers(rows, size=rows) for _ in range(n_resamples)]
    scores = []
    for indices in resamples:
        on_progress()
        scores.append(score(predictions[indices], references[indices]))
    return np.percentile(scores, [2.5, 97.5]).tolist()


def confusion_matrix(predictions: ArrayLike, references: ArrayLike, num_labels: int) -> list[list[int]]:
    """Count label indices; rows are true labels, columns predicted ones; shape (num_labels, num_labels)."""
    matrix = np.zeros((num_labels, num_labels), dtype=int)
    np.add.at(matrix, (np.asarray(references), np.asarray(predictions)), 1)
    return matrix.tolist()


def label_scores(
    predictions: np.ndarray, references: np.ndarray, num_labels: int
) -> list[dict[str, float | int]]:
    """Return `precision`, `recall`, `f1` and `support` (true instances) of each label; 0 for 0 / 0.

    Takes label indices (rows,) or 0 and 1 (rows, labels).
    """
    if np.ndim(references) == 1:
        return _by_index(predictions, references, np.arange(num_labels))
    return [_binary_scores(predictions[:, i] == 1, references[:, i] == 1) for i in range(num_labels)]


def _by_index(predicted: np.ndarray, true: np.ndarray, labels: np.ndarray) -> list[dict[str, float | int]]:
    return [_binary_scores(predicted == label, true == label) for label in labels]


def _binary_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, float | int]:
    hits, positives, support = (int(np.sum(mask)) for mask in (predicted & true, predicted, true))
    return {
        "precision": hits / positives if positives else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (positives + support) if hits else 0.0,
        "support": support,
    }


def _unit(values: np.ndarray) -> np.ndarray:
    """Center and scale to length 1; divide by the maximum first, so that no square over- or underflows."""
    centered = values - values.mean()
    centered = centered / np.abs(centered).max()
    return centered / np.linalg.norm(centered)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values get their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    return (last_rank - (counts - 1) / 2)[inverse]


def _wilson(hits: int, rows: int, z: float = 1.96) -> list[float]:
    """Return the Wilson score interval of a proportion."""
    proportion, z2 = hits / rows, z * z / rows
    center = (proportion + z2 / 2) / (1 + z2)
    half_width = z * (proportion * (1 - proportion) / rows + z2 / (4 * rows)) ** 0.5 / (1 + z2)
    return [center - half_width, center + half_width]
