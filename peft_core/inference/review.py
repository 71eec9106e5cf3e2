"""The rows that a run was judged on, one by one: its hardest mistakes, and a search over them all."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from peft_core.errors import ConfigError, RunError
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import Decision
from peft_core.problems import MULTI, NO_LABEL, REGRESSION, SINGLE, joined
from peft_core.rows import TEST, VALIDATION, JudgedRows, judged_rows
from peft_core.runs import Run

MOST = 500  # rows in one answer


@dataclass(frozen=True)
class Judged:
    """A run's test or validation rows under its Decision: calibrated, with its thresholds.

    The model was not trained on either, so its probabilities are out-of-sample; those of validation rows a
    little less so, for temperature and thresholds may have been chosen on them.
    """

    rows: JudgedRows
    labels: tuple[str, ...]
    problem_type: str
    decision: Decision

    @classmethod
    def read(cls, run: Run, part: str = TEST) -> "Judged":
        """RunError if the run has no such rows, or no adapter."""
        if part not in (TEST, VALIDATION):
            raise RunError(f"There are no {part!r} rows; choose {TEST} or {VALIDATION}.")
        classifier = Classifier.read(run)
        rows = judged_rows(run, part)
        return cls(rows, classifier.labels, classifier.problem_type, Decision.read(run))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Calibrated, float64 (rows, labels); of a number the number itself."""
        return self.decision.probabilities(self.rows.logits, self.problem_type)

    @cached_property
    def decided(self) -> np.ndarray:
        """As `problems.decide`, by the run's Decision."""
        return self.decision.decide(self.rows.logits, self.problem_type)

    @cached_property
    def confidence(self) -> np.ndarray:
        """From 0 to 1 (rows,), as `Decision.confidence`."""
        return self.decision.confidence(self.rows.logits, self.problem_type)

    @cached_property
    def wrong(self) -> np.ndarray:
        """Bool (rows,): another label, or not the same set of them; no number is wrong."""
        if self.problem_type == REGRESSION:
            return np.zeros(len(self.rows), dtype=bool)
        return (self.decided != self.rows.labels).reshape(len(self.rows), -1).any(-1)

    @cached_property
    def loss(self) -> np.ndarray:
        """(rows,): -ln of the true label's probability, of several labels its mean; of a number the error."""
        true, raw = self.rows.labels, self.rows.logits
        if self.problem_type == REGRESSION:
            return np.abs(raw[:, 0] - true)
        scaled = raw / self.decision.temperature  # from the raw outputs: a probability of 0 or 1 says no more
        if self.problem_type == MULTI:
            return np.logaddexp(0.0, np.where(true == 1, -scaled, scaled)).mean(-1)
        return np.logaddexp.reduce(scaled, -1) - np.take_along_axis(scaled, true[:, None], -1)[:, 0]

    def named(self, answers: np.ndarray) -> list[str]:
        """Answers as `problems.decide` gives them, as people read them."""
        if self.problem_type == REGRESSION:
            return [f"{value:.4g}" for value in answers]
        if self.problem_type == MULTI:
            return [joined([self.labels[i] for i in np.flatnonzero(held)]) for held in answers]
        return [self.labels[i] for i in answers]

    def describe(self, places: Sequence[int], reasons: Sequence[str]) -> list[dict[str, Any]]:
        """These rows as JSON types: `row` (from 1), `text`, `text_pair` (or None), `true`, `predicted`,
        `confidence` (None for a number), `loss`, `wrong` and `reason`."""
        at = np.asarray(places, dtype=np.int64)
        true, predicted = self.named(self.rows.labels[at]), self.named(self.decided[at])
        pairs, number = self.rows.pairs, self.problem_type == REGRESSION
        return [
            {
                "row": int(i) + 1,
                "text": self.rows.texts[i],
                "text_pair": pairs[i] if pairs else None,
                "true": true[n],
                "predicted": predicted[n],
                "confidence": None if number else float(self.confidence[i]),
                "loss": float(self.loss[i]),
                "wrong": bool(self.wrong[i]),
                "reason": reasons[n],
            }
            for n, i in enumerate(at)
        ]


def hardest(run: Run, part: str = TEST, most: int = 50) -> list[dict[str, Any]]:
    """The wrong rows with the largest loss, where the model was surest of another label; of numbers the rows
    with the largest error. The worst first, as `Judged.describe` gives them; RunError for lost rows."""
    judged = Judged.read(run, part)
    order = np.argsort(-judged.loss, kind="stable")
    if judged.problem_type != REGRESSION:
        order = order[judged.wrong[order]]
    order = order[: _count(most)]
    return judged.describe(order, [why_wrong(judged, i) for i in order])


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
    most: int = 50,
) -> dict[str, Any]:
    """`total`, how many rows match, and `rows`, those from `start` on, as `Judged.describe` gives them.

    A row matches if it holds each word of the query, in any case and with or without accents, in one of its
    texts, and has these labels (of several labels: has this one among them). Raises ConfigError for an
    unknown label, or for a question that numbers cannot answer, RunError for lost rows.
    """
    judged = Judged.read(run, part)
    found = np.ones(len(judged.rows), dtype=bool)
    for label, answers in ((true, judged.rows.labels), (predicted, judged.decided)):
        if label is not None:
            found &= _has(judged, answers, label)
    if only_wrong:
        if judged.problem_type == REGRESSION:
            raise ConfigError("A number is never simply wrong; ask for the largest errors instead.")
        found &= judged.wrong
    places = _containing(judged.rows, query, np.flatnonzero(found))
    if hardest_first:
        places = places[np.argsort(-judged.loss[places], kind="stable")]
    first = max(0, int(start))
    shown = places[first : first + _count(most)]
    return {"total": len(places), "rows": judged.describe(shown, [why_wrong(judged, i) for i in shown])}


def why_wrong(judged: Judged, i: int) -> str:
    """What the model said of a row and what its label is, in a sentence; empty where they are the same."""
    if judged.problem_type == REGRESSION:
        value, true = judged.decided[i], judged.rows.labels[i]
        side = "high" if value > true else "low"
        return f"{abs(value - true):.4g} too {side}." if value != true else ""
    if not judged.wrong[i]:
        return ""
    shares = judged.probabilities[i]
    if judged.problem_type == SINGLE:
        said, true = judged.decided[i], judged.rows.labels[i]
        return (
            f"The model says {judged.labels[said]} ({percent(shares[said])}); the row's label "
            f"{judged.labels[true]} gets {percent(shares[true])}."
        )
    said, true = judged.decided[i], judged.rows.labels[i]
    more = [f"{judged.labels[k]} ({percent(shares[k])})" for k in np.flatnonzero(said > true)]
    less = [f"{judged.labels[k]} ({percent(shares[k])})" for k in np.flatnonzero(said < true)]
    words = [f"gives {joined(more)} too"] * bool(more) + [f"leaves out {joined(less)}"] * bool(less)
    return f"The model {' and '.join(words)}."


def percent(share: float) -> str:
    """A probability as people read it: 98.7 %, above 99.9 %."""
    if share > 0.999:
        return "above 99.9 %"
    return "below 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _count(most: int) -> int:
    return min(MOST, max(1, int(most)))


def _has(judged: Judged, answers: np.ndarray, label: str) -> np.ndarray:
    """Which answers (rows,) are this label, or have it among theirs."""
    if judged.problem_type == REGRESSION:
        raise ConfigError(f"There is no label {label!r}; this run predicts a number.")
    if judged.problem_type == MULTI and label == NO_LABEL:
        return ~answers.any(-1)
    if label not in judged.labels:
        raise ConfigError(f"There is no label {label!r}; it is one of {', '.join(judged.labels[:20])}.")
    index = judged.labels.index(label)
    return answers[:, index] == 1 if judged.problem_type == MULTI else answers == index


def _containing(rows: JudgedRows, query: str, places: np.ndarray) -> np.ndarray:
    """The places whose texts hold every word of the query."""
    words = _folded(query).split()
    if not words:
        return places
    sides = [rows.texts] if rows.pairs is None else [rows.texts, rows.pairs]
    texts = ("\n".join(_folded(side[i]) for side in sides) for i in places)
    return places[[all(word in text for word in words) for text in texts]]


def _folded(text: str) -> str:
    """Without case and accents."""
    if text.isascii():
        return text.lower()
    parted = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in parted if not unicodedata.combining(character)).casefold()
