"""What a classifier is judged by: `evaluate.Metric` subclasses, so that no script is fetched."""

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

_FEATURES = Features({"predictions": Value("int64"), "references": Value("int64")})


class _LabelMetric(evaluate.Metric):
    """A metric over label indices; `compute(predictions=, references=)` takes two int lists of one length."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=_FEATURES)


class Accuracy(_LabelMetric):
    """Share of texts whose predicted label is the true one, from 0 to 1."""

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.equal(predictions, references)))}


class MacroF1(_LabelMetric):
    """Mean over the labels that occur (as truth or prediction) of 2 TP / (2 TP + FP + FN), from 0 to 1."""

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        predicted, true = np.asarray(predictions), np.asarray(references)
        scores = []
        for label in np.union1d(predicted, true):
            hits = np.sum((predicted == label) & (true == label))
            scores.append(2 * hits / (np.sum(predicted == label) + np.sum(true == label)))
        return {"macro_f1": float(np.mean(scores))}


def confusion_matrix(
    predictions: Sequence[int], references: Sequence[int], num_labels: int
) -> list[list[int]]:
    """Counts, one row a true label, one column a predicted one; shape (num_labels, num_labels)."""
    matrix = np.zeros((num_labels, num_labels), dtype=int)
    np.add.at(matrix, (np.asarray(references), np.asarray(predictions)), 1)
    return matrix.tolist()


def classification_metrics(predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
    """`accuracy` and `macro_f1` of predicted against true label indices."""
    found: dict[str, Any] = {}
    for metric in (Accuracy(keep_in_memory=True), MacroF1(keep_in_memory=True)):
        found |= metric.compute(predictions=list(predictions), references=list(references))
    return found
