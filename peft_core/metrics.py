"""What a model is judged by: `evaluate.Metric` subclasses, so that no script is fetched."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import datasets
import evaluate
import numpy as np
from datasets import Features, Value

from peft_core.problems import MULTI, REGRESSION, SINGLE

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
    labels, both = np.unique(np.concatenate([predicted, true]), return_inverse=True)
    p = np.bincount(both[: len(predicted)], minlength=len(labels)).astype(float)
    t = np.bincount(both[len(predicted) :], minlength=len(labels)).astype(float)
    n, hits = len(true), float(np.sum(predicted == true))
    spread = (n * n - p @ p) * (n * n - t @ t)
    return float((hits * n - p @ t) / np.sqrt(spread)) if spread > 0 else 0.0


def _micro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    given = predicted.sum() + true.sum()
    return float(2 * np.sum(predicted & true) / given) if given else 0.0


def _macro_f1_of_sets(predicted: np.ndarray, true: np.ndarray) -> float:
    given = predicted.sum(0) + true.sum(0)
    found = 2 * np.sum(predicted & true, 0)[given > 0] / given[given > 0]
    return float(np.mean(found)) if len(found) else 0.0


def _subset_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean(np.all(predicted == true, axis=-1)))


def _pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0
    one, other = (_unit(values) for values in (predicted, true))
    return float(np.clip(one @ other, -1.0, 1.0))


def _spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    return _pearson(_ranks(predicted), _ranks(true))


def _mae(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean(np.abs(predicted - true)))


def _rmse(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(predicted - true))))


Score = Callable[[np.ndarray, np.ndarray], float]


class _TaskMetric(evaluate.Metric):
    """`compute(predictions=, references=)` takes two lists of one length, at least 1."""

    key: ClassVar[str]
    columns: ClassVar[dict]
    score: ClassVar[Score]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__, citation="", features=Features(self.columns)
        )

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        return {self.key: self.score(np.asarray(predictions), np.asarray(references))}


class Accuracy(_TaskMetric):
    """Share of texts whose predicted label is the true one, from 0 to 1."""

    key, columns, score = "accuracy", _INDICES, staticmethod(_accuracy)


class MacroF1(_TaskMetric):
    """Mean over the labels that occur (as truth or prediction) of 2 TP / (2 TP + FP + FN), from 0 to 1."""

    key, columns, score = "macro_f1", _INDICES, staticmethod(_macro_f1)


class WeightedF1(_TaskMetric):
    """As MacroF1, each label weighted by how many texts truly have it."""

    key, columns, score = "weighted_f1", _INDICES, staticmethod(_weighted_f1)


class MCC(_TaskMetric):
    """Matthews' correlation for any number of labels, from -1 to 1; 0 where truth or prediction is constant.

    Source: Gorodkin, Computational Biology and Chemistry 28 (2004).
    """

    key, columns, score = "mcc", _INDICES, staticmethod(_mcc)


class MicroF1(_TaskMetric):
    """2 TP / (2 TP + FP + FN) over all labels of all texts together; 0 where no text has or gets a label.

    Takes rows of 0 and 1, one number a label.
    """

    key, columns, score = "micro_f1", _SETS, staticmethod(_micro_f1)


class MultiLabelMacroF1(_TaskMetric):
    """Mean of F1 over the labels that occur (as truth or prediction); 0 where none does. Rows of 0 and 1."""

    key, columns, score = "macro_f1", _SETS, staticmethod(_macro_f1_of_sets)


class SubsetAccuracy(_TaskMetric):
    """Share of texts that get exactly their labels, no more and no less, from 0 to 1. Rows of 0 and 1."""

    key, columns, score = "subset_accuracy", _SETS, staticmethod(_subset_accuracy)


class Spearman(_TaskMetric):
    """Correlation of the ranks (ties share their mean), from -1 to 1; 0 where either side is constant."""

    key, columns, score = "spearman", _NUMBERS, staticmethod(_spearman)


class Pearson(_TaskMetric):
    """Correlation of the numbers, from -1 to 1; 0 where either side is constant."""

    key, columns, score = "pearson", _NUMBERS, staticmethod(_pearson)


class MAE(_TaskMetric):
    """Mean absolute error, in the labels' own unit."""

    key, columns, score = "mae", _NUMBERS, staticmethod(_mae)


class RMSE(_TaskMetric):
    """Square root of the mean squared error, in the labels' own unit."""

    key, columns, score = "rmse", _NUMBERS, staticmethod(_rmse)


_CLASSES: dict[str, tuple[type[_TaskMetric], ...]] = {
    SINGLE: (Accuracy, MacroF1, WeightedF1, MCC),
    MULTI: (MicroF1, MultiLabelMacroF1, SubsetAccuracy),
    REGRESSION: (Spearman, Pearson, MAE, RMSE),
}


def task_metrics(problem_type: str, predictions: Sequence, references: Sequence) -> dict[str, float]:
    """Every metric of a task, the headline first, of what `problems.decide` gives against the truth."""
    found: dict[str, float] = {}
    for metric in _CLASSES[problem_type]:
        predicted, true = (np.asarray(side).tolist() for side in (predictions, references))
        found |= metric(keep_in_memory=True).compute(predictions=predicted, references=true)
    return found


def headline_interval(
    problem_type: str,
    predictions: np.ndarray,
    references: np.ndarray,
    *,
    seed: int = 0,
    on_progress: Callable[[], None] = lambda: None,
) -> list[float]:
    """The 95 % interval of the headline metric: Wilson's for accuracy, else bootstrap percentiles.

    Sources: Wilson, JASA 22 (1927); Efron, The Annals of Statistics 7 (1979).
    """
    rows = len(references)
    if problem_type == SINGLE:
        return _wilson(int(np.sum(predictions == references)), rows)
    score = _CLASSES[problem_type][0].score
    rng = np.random.default_rng(seed)
    draws = max(100, min(1000, 10_000_000 // rows))  # a thousand, fewer where each takes long
    drawn = [rng.integers(rows, size=rows) for _ in range(draws)]
    scores = []
    for chosen in drawn:
        on_progress()
        scores.append(score(predictions[chosen], references[chosen]))
    return np.percentile(scores, [2.5, 97.5]).tolist()


def confusion_matrix(
    predictions: Sequence[int], references: Sequence[int], num_labels: int
) -> list[list[int]]:
    """Counts, one row a true label, one column a predicted one; shape (num_labels, num_labels)."""
    matrix = np.zeros((num_labels, num_labels), dtype=int)
    np.add.at(matrix, (np.asarray(references), np.asarray(predictions)), 1)
    return matrix.tolist()


def label_scores(
    predictions: np.ndarray, references: np.ndarray, num_labels: int
) -> list[dict[str, float | int]]:
    """For each label `precision`, `recall`, `f1` and `support` (texts that truly have it); 0 for 0 / 0.

    Takes label indices (rows,) or 0 and 1 (rows, labels).
    """
    if np.ndim(references) == 1:
        return _by_index(predictions, references, np.arange(num_labels))
    return [_one_label(predictions[:, i] == 1, references[:, i] == 1) for i in range(num_labels)]


def _by_index(predicted: np.ndarray, true: np.ndarray, labels: np.ndarray) -> list[dict[str, float | int]]:
    return [_one_label(predicted == label, true == label) for label in labels]


def _one_label(given: np.ndarray, held: np.ndarray) -> dict[str, float | int]:
    hits, predicted, support = (int(np.sum(mask)) for mask in (given & held, given, held))
    return {
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (predicted + support) if hits else 0.0,
        "support": support,
    }


def _unit(values: np.ndarray) -> np.ndarray:
    """Centred, of length 1; scaled first, so that neither large nor tiny numbers overflow when squared."""
    centred = values - values.mean()
    centred = centred / np.abs(centred).max()
    return centred / np.linalg.norm(centred)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def _wilson(hits: int, rows: int, z: float = 1.96) -> list[float]:
    share, z2 = hits / rows, z * z / rows
    middle = (share + z2 / 2) / (1 + z2)
    half = z * (share * (1 - share) / rows + z2 / (4 * rows)) ** 0.5 / (1 + z2)
    return [middle - half, middle + half]
