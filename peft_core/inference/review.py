"""Inspect a run's test or validation rows: the hardest mistakes, and a search over all rows."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from peft_core.errors import ConfigError, RunError
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.problem_types import MULTI, NO_LABEL, REGRESSION, SINGLE, join_labels
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import TEST, VALIDATION, EvaluationRows, load_evaluation_rows

MAX_ROWS = 500  # rows in one response


@dataclass(frozen=True)
class Evaluation:
    """A run's test or validation rows with the predictions of its decision rule.

    The model was not trained on these rows, so its probabilities are out-of-sample; on validation rows less
    strictly so, because temperature and thresholds may have been fitted to them.
    """

    rows: EvaluationRows
    labels: tuple[str, ...]
    problem_type: str
    decision_rule: DecisionRule

    @classmethod
    def read(cls, run: Run, part: str = TEST) -> "Evaluation":
        """Load a run's rows; RunError if the run has no such rows, or no adapter."""
        if part not in (TEST, VALIDATION):
            raise RunError(f"There are no {part!r} rows; choose {TEST} or {VALIDATION}.")
        classifier = Classifier.read(run)
        rows = load_evaluation_rows(run, part)
        return cls(rows, classifier.labels, classifier.problem_type, DecisionRule.read(run))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Calibrated probabilities, float64 (rows, labels); a regression's numbers as they are."""
        return self.decision_rule.probabilities(self.rows.logits, self.problem_type)

    @cached_property
    def decided(self) -> np.ndarray:
        """Predictions as `problem_types.decide` returns them, by the run's decision rule."""
        return self.decision_rule.decide(self.rows.logits, self.problem_type)

    @cached_property
    def confidence(self) -> np.ndarray:
        """`DecisionRule.confidence`, from 0 to 1 (rows,)."""
        return self.decision_rule.confidence(self.rows.logits, self.problem_type)

    @cached_property
    def wrong(self) -> np.ndarray:
        """Bool (rows,): whether the predicted label or label set is not the true one; regression: False."""
        if self.problem_type == REGRESSION:
            return np.zeros(len(self.rows), dtype=bool)
        return (self.decided != self.rows.labels).reshape(len(self.rows), -1).any(-1)

    @cached_property
    def loss(self) -> np.ndarray:
        """Log loss in nats (rows,); multi-label: mean over the labels; regression: absolute error."""
        true, raw = self.rows.labels, self.rows.logits
        if self.problem_type == REGRESSION:
            return np.abs(raw[:, 0] - true)
        # from logits, because probabilities that round to 0 or 1 lose the difference
        scaled = raw / self.decision_rule.temperature
        if self.problem_type == MULTI:
            return np.logaddexp(0.0, np.where(true == 1, -scaled, scaled)).mean(-1)
        return np.logaddexp.reduce(scaled, -1) - np.take_along_axis(scaled, true[:, None], -1)[:, 0]

    def format_labels(self, labels: np.ndarray) -> list[str]:
        """Return labels or predictions, in the format of `problem_types.decide`, as text."""
        if self.problem_type == REGRESSION:
            return [f"{number:.4g}" for number in labels]
        if self.problem_type == MULTI:
            return [join_labels([self.labels[i] for i in np.flatnonzero(row)]) for row in labels]
        return [self.labels[i] for i in labels]

    def to_records(self, indices: ArrayLike, reasons: Sequence[str]) -> list[dict[str, Any]]:
        """Return rows as JSON types.

        Args:
            indices: Positions of the rows, from 0.
            reasons: The `reason` of each row.

        Returns:
            `row` (number, from 1), `text`, `text_pair` (or None), `true`, `predicted`, `confidence` (None for
            a regression), `loss`, `wrong` and `reason` of each row.
        """
        at = np.asarray(indices, dtype=np.int64)
        true = self.format_labels(self.rows.labels[at])
        predicted = self.format_labels(self.decided[at])
        pairs, is_regression = self.rows.pairs, self.problem_type == REGRESSION
        return [
            {
                "row": int(i) + 1,
                "text": self.rows.texts[i],
                "text_pair": pairs[i] if pairs else None,
                "true": true[n],
                "predicted": predicted[n],
                "confidence": None if is_regression else float(self.confidence[i]),
                "loss": float(self.loss[i]),
                "wrong": bool(self.wrong[i]),
                "reason": reasons[n],
            }
            for n, i in enumerate(at)
        ]


def hardest(run: Run, part: str = TEST, max_rows: int = 50) -> list[dict[str, Any]]:
    """Return the wrong rows with the largest loss (regression: with the largest error), worst first.

    A row has the keys of `Evaluation.to_records`. Raises RunError if the rows are lost.
    """
    evaluation = Evaluation.read(run, part)
    order = np.argsort(-evaluation.loss, kind="stable")
    if evaluation.problem_type != REGRESSION:
        order = order[evaluation.wrong[order]]
    order = order[: _limit(max_rows)]
    return evaluation.to_records(order, [describe_mistake(evaluation, i) for i in order])


def search_rows(
    run: Run,
    query: str = "",
    *,
    true: str | None = None,
    predicted: str | None = None,
    only_wrong: bool = False,
    hardest_first: bool = False,
    part: str = TEST,
    start: int = 0,
    max_rows: int = 50,
) -> dict[str, Any]:
    """Search a run's rows by words and labels.

    Args:
        run: The run.
        query: Words that must all occur in the row's texts; case and accents are ignored.
        true: True label; multi-label: one of the true labels.
        predicted: Predicted label; multi-label: one of the predicted labels.
        only_wrong: Whether to return wrong rows only.
        hardest_first: Whether to sort by falling loss instead of by row.
        part: TEST or VALIDATION.
        start: Number of matching rows to skip.
        max_rows: Most rows to return, at most MAX_ROWS.

    Returns:
        `total`, the number of matching rows, and `rows`, with the keys of `Evaluation.to_records`.

    Raises:
        ConfigError: If a label is unknown, or the run is a regression and cannot be filtered so.
        RunError: If the rows are lost.
    """
    evaluation = Evaluation.read(run, part)
    matches = np.ones(len(evaluation.rows), dtype=bool)
    for label, labels in ((true, evaluation.rows.labels), (predicted, evaluation.decided)):
        if label is not None:
            matches &= _has_label(evaluation, labels, label)
    if only_wrong:
        if evaluation.problem_type == REGRESSION:
            raise ConfigError("A predicted number is not right or wrong; ask for the largest errors instead.")
        matches &= evaluation.wrong
    indices = _filter_by_query(evaluation.rows, query, np.flatnonzero(matches))
    if hardest_first:
        indices = indices[np.argsort(-evaluation.loss[indices], kind="stable")]
    first = max(0, int(start))
    page = indices[first : first + _limit(max_rows)]
    reasons = [describe_mistake(evaluation, i) for i in page]
    return {"total": len(indices), "rows": evaluation.to_records(page, reasons)}


def describe_mistake(evaluation: Evaluation, i: int) -> str:
    """Return a sentence on how a row's prediction differs from its label; empty if they are equal."""
    if evaluation.problem_type == REGRESSION:
        number, true = evaluation.decided[i], evaluation.rows.labels[i]
        side = "high" if number > true else "low"
        return f"{abs(number - true):.4g} too {side}." if number != true else ""
    if not evaluation.wrong[i]:
        return ""
    probabilities = evaluation.probabilities[i]
    predicted, true = evaluation.decided[i], evaluation.rows.labels[i]
    if evaluation.problem_type == SINGLE:
        return (
            f"The model says {evaluation.labels[predicted]} ({percent(probabilities[predicted])}); the row's "
            f"label {evaluation.labels[true]} gets {percent(probabilities[true])}."
        )
    extra = [
        f"{evaluation.labels[k]} ({percent(probabilities[k])})" for k in np.flatnonzero(predicted > true)
    ]
    missing = [
        f"{evaluation.labels[k]} ({percent(probabilities[k])})" for k in np.flatnonzero(predicted < true)
    ]
    parts = [f"gives {join_labels(extra)} too"] * bool(extra)
    parts += [f"leaves out {join_labels(missing)}"] * bool(missing)
    return f"The model {' and '.join(parts)}."


def percent(probability: float) -> str:
    """Format a probability: 98.7 %, above 99.9 %."""
    if probability > 0.999:
        return "above 99.9 %"
    return "below 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"


def _limit(max_rows: int) -> int:
    return min(MAX_ROWS, max(1, int(max_rows)))


def _has_label(evaluation: Evaluation, labels: np.ndarray, label: str) -> np.ndarray:
    """Return bool (rows,): which labels are this one, or include it."""
    if evaluation.problem_type == REGRESSION:
        raise ConfigError(f"There is no label {label!r}; this run predicts a number.")
    if evaluation.problem_type == MULTI and label == NO_LABEL:
        return labels.sum(-1) == 0
    if label not in evaluation.labels:
        raise ConfigError(f"There is no label {label!r}; it is one of {', '.join(evaluation.labels[:20])}.")
    index = evaluation.labels.index(label)
    return labels[:, index] == 1 if evaluation.problem_type == MULTI else labels == index


def _filter_by_query(rows: EvaluationRows, query: str, indices: np.ndarray) -> np.ndarray:
    """Return the indices of the rows whose texts contain every word of the query."""
    words = _strip_accents_and_case(query).split()
    if not words:
        return indices
    columns = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    texts = ("\n".join(_strip_accents_and_case(column[i]) for column in columns) for i in indices)
    return indices[[all(word in text for word in words) for text in texts]]


def _strip_accents_and_case(text: str) -> str:
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    base = "".join(character for character in decomposed if not unicodedata.combining(character))
    return base.casefold()
