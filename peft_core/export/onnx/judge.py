"""Judges another form of a model against the model in torch: metrics, labels, logits and speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from peft_core.inference.batching import batched_logits
from peft_core.inference.classifier import Classifier
from peft_core.metrics import task_metrics
from peft_core.problems import decide, headline, label_flips
from peft_core.rows import JudgedRows

SPEED_SECONDS, SPEED_REPEATS, SPEED_ROWS = 1.0, 3, 8  # of a turn in torch; turns; the fewest rows of one
Ask = Callable[[Sequence[str], Sequence[str] | None], np.ndarray]


@dataclass(frozen=True)
class Judge:
    """The rows, the model in torch as a function of texts and pairs, its answers, its bytes, its seconds."""

    rows: JudgedRows
    problem_type: str
    ask: Ask
    reference: np.ndarray
    bytes: int
    seconds: float

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, rows: JudgedRows, classifier: Classifier) -> "Judge":
        """With the answers that the model gives now."""

        def ask(texts: Sequence[str], pairs: Sequence[str] | None) -> np.ndarray:
            return batched_logits(model, tokenizer, texts, classifier.max_length, text_pairs=pairs)

        size = sum(weight.nbytes for weight in model.parameters())
        start = time.perf_counter()
        reference = ask(rows.texts, rows.pairs)
        seconds = time.perf_counter() - start
        return cls(rows, classifier.problem_type, ask, reference, size, seconds)

    @property
    def asked(self) -> tuple[list[str], list[str] | None]:
        return self.rows.texts, self.rows.pairs

    @property
    def task(self) -> dict[str, str]:
        return {"problem_type": self.problem_type, "headline": headline(self.problem_type)}

    @property
    def original(self) -> dict[str, Any]:
        """`metrics` and `bytes` of the model in torch."""
        return {"metrics": self._metrics(self.reference), "bytes": self.bytes}

    def compare(self, logits: np.ndarray, max_drop: float) -> dict[str, Any]:
        """`metrics`, and against the reference: `drop`, `within`, `labels_flipped`, `max_logit_diff`."""
        metrics, first = self._metrics(logits), headline(self.problem_type)
        # rounded, for 78.6 - 78.1 is a little more than 0.5
        drop = round(100 * (self._metrics(self.reference)[first] - metrics[first]), 6)
        return {
            "metrics": metrics,
            "drop": drop,
            "within": drop <= max_drop,
            "labels_flipped": label_flips(self.problem_type, self.reference, logits),
            "max_logit_diff": float(np.abs(self.reference - logits).max()),
        }

    def rows_per_second(self, others: dict[str, Ask]) -> dict[str, dict[str, float]]:
        """`rows_per_second` and `speed_ratio` of the model in torch, as `original`, and of the others.

        Medians of turns that follow one another, so that a busy moment slows all of them.
        """
        texts, pairs = self._some_rows()
        asked = {"original": self.ask, **others}
        turns = [
            {name: _seconds(ask, texts, pairs) for name, ask in asked.items()} for _ in range(SPEED_REPEATS)
        ]
        speeds = {name: len(texts) / median(turn[name] for turn in turns) for name in asked}
        return {
            name: {"rows_per_second": speed, "speed_ratio": speed / speeds["original"]}
            for name, speed in speeds.items()
        }

    def _metrics(self, logits: np.ndarray) -> dict[str, float]:
        return task_metrics(self.problem_type, decide(logits, self.problem_type), self.rows.labels)

    def _some_rows(self) -> tuple[list[str], list[str] | None]:
        """As many as torch reads in a second, from everywhere among the rows."""
        count = max(SPEED_ROWS, int(len(self.rows) * SPEED_SECONDS / self.seconds))
        chosen = np.linspace(0, len(self.rows) - 1, min(count, len(self.rows))).astype(int)
        texts, pairs = self.asked
        return [texts[i] for i in chosen], None if pairs is None else [pairs[i] for i in chosen]


def _seconds(ask: Ask, texts: list[str], pairs: list[str] | None) -> float:
    start = time.perf_counter()
    ask(texts, pairs)
    return time.perf_counter() - start
