"""Evaluation of an exported model against the model in torch: metrics, labels, logits and speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from peft_core.inference.batching import batched_logits
from peft_core.inference.classifier import Classifier
from peft_core.inference.metrics import task_metrics
from peft_core.problem_types import decide, headline, label_flips
from peft_core.runs.evaluation_rows import EvaluationRows

SPEED_SECONDS, SPEED_REPEATS, SPEED_ROWS = 1.0, 3, 8  # duration of a round in torch; rounds; fewest rows
PredictLogits = Callable[[Sequence[str], Sequence[str] | None], np.ndarray]


@dataclass(frozen=True)
class ExportEvaluation:
    """Evaluation rows with the logits of the model in torch as the reference.

    Attributes:
        rows: the evaluation rows.
        problem_type: problem type of the classifier.
        predict_logits: the model in torch, from texts and pairs to logits.
        reference: its logits on `rows`.
        bytes: size of its parameters.
        seconds: time that it took for `rows`.
    """

    rows: EvaluationRows
    problem_type: str
    predict_logits: PredictLogits
    reference: np.ndarray
    bytes: int
    seconds: float

    @classmethod
    def from_model(
        cls, model: nn.Module, tokenizer: Any, rows: EvaluationRows, classifier: Classifier
    ) -> "ExportEvaluation":
        """Predict the rows with the model in torch."""

        def predict_logits(texts: Sequence[str], pairs: Sequence[str] | None) -> np.ndarray:
            return batched_logits(model, tokenizer, texts, classifier.max_length, text_pairs=pairs)

        size = sum(weight.nbytes for weight in model.parameters())
        start = time.perf_counter()
        reference = predict_logits(rows.texts, rows.pairs)
        seconds = time.perf_counter() - start
        return cls(rows, classifier.problem_type, predict_logits, reference, size, seconds)

    @property
    def inputs(self) -> tuple[list[str], list[str] | None]:
        """Texts and pairs of the rows."""
        return self.rows.texts, self.rows.pairs

    @property
    def metadata(self) -> dict[str, str]:
        """`problem_type` and `headline` of the report."""
        return {"problem_type": self.problem_type, "headline": headline(self.problem_type)}

    @property
    def original(self) -> dict[str, Any]:
        """`metrics` and `bytes` of the model in torch, for the report."""
        return {"metrics": self._metrics(self.reference), "bytes": self.bytes}

    def compare(self, logits: np.ndarray, max_drop: float) -> dict[str, Any]:
        """Compare the logits of an export with the reference.

        Returns:
            `metrics`, `drop` (points of the headline metric lost), `within` (whether that is at most
            `max_drop`), `labels_flipped` and `max_logit_diff`.
        """
        metrics, metric = self._metrics(logits), headline(self.problem_type)
        # rounded, because 78.6 - 78.1 is slightly more than 0.5 in floating point
        drop = round(100 * (self._metrics(self.reference)[metric] - metrics[metric]), 6)
        return {
            "metrics": metrics,
            "drop": drop,
            "within": drop <= max_drop,
            "labels_flipped": label_flips(self.problem_type, self.reference, logits),
            "max_logit_diff": float(np.abs(self.reference - logits).max()),
        }

    def rows_per_second(self, exported: dict[str, PredictLogits]) -> dict[str, dict[str, float]]:
        """Return `rows_per_second` and `speed_ratio` of the model in torch (`original`) and of the exports.

        They are medians of interleaved rounds, so that a busy moment of the machine slows all models alike.
        """
        texts, pairs = self._speed_sample()
        models = {"original": self.predict_logits, **exported}
        rounds = [
            {name: _seconds(predict_logits, texts, pairs) for name, predict_logits in models.items()}
            for _ in range(SPEED_REPEATS)
        ]
        speeds = {name: len(texts) / median(seconds[name] for seconds in rounds) for name in models}
        return {
            name: {"rows_per_second": speed, "speed_ratio": speed / speeds["original"]}
            for name, speed in speeds.items()
        }

    def _metrics(self, logits: np.ndarray) -> dict[str, float]:
        return task_metrics(self.problem_type, decide(logits, self.problem_type), self.rows.labels)

    def _speed_sample(self) -> tuple[list[str], list[str] | None]:
        """Return evenly spaced rows, as many as the model in torch predicts in `SPEED_SECONDS`."""
        count = max(SPEED_ROWS, int(len(self.rows) * SPEED_SECONDS / self.seconds))
        chosen = np.linspace(0, len(self.rows) - 1, min(count, len(self.rows))).astype(int)
        texts, pairs = self.inputs
        return [texts[i] for i in chosen], None if pairs is None else [pairs[i] for i in chosen]


def _seconds(predict_logits: PredictLogits, texts: list[str], pairs: list[str] | None) -> float:
    start = time.perf_counter()
    predict_logits(texts, pairs)
    return time.perf_counter() - start
