"""Predict labels or numbers for texts with a run's base model, adapter or merged model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_core.data.labelled import truncate_text
from peft_core.errors import DataError, HubError, RunError
from peft_core.inference.batching import batched_logits
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import PLAIN, DecisionRule
from peft_core.inference.loading import ADAPTER, BASE, VARIANTS, load_adapter_base, load_variant
from peft_core.inference.probe import load_or_fit_probe
from peft_core.problem_types import MULTI, REGRESSION, join_labels
from peft_core.progress import no_progress
from peft_core.runs import Run


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one text.

    Attributes:
        label: The predicted label; multi-label: the labels joined by commas; regression: the number as text.
        scores: The probability of every label; single label: they sum to 1. Empty for a regression.
        ms: Milliseconds that the prediction took.
        logits: The raw outputs.
        note: A remark for the user, or an empty text.
        labels: Multi-label: the labels whose probability reaches their threshold.
        value: Regression: the number.
        confidence: Probability of the prediction, from 0 to 1; None for a regression.
        abstained: Whether the confidence is below the decision rule's `abstain_below`.
    """

    label: str
    scores: dict[str, float]
    ms: float
    logits: tuple[float, ...] = ()
    note: str = ""
    labels: tuple[str, ...] | None = None
    value: float | None = None
    confidence: float | None = None
    abstained: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: `label`, `scores`, `ms`, `note`, and the fields that the problem type has."""
        fields: dict[str, Any] = {
            "label": self.label, "scores": self.scores, "ms": self.ms, "note": self.note,
        }  # fmt: skip
        if self.confidence is not None:
            fields |= {"confidence": self.confidence, "abstained": self.abstained}
        if self.labels is not None:
            fields["labels"] = list(self.labels)
        return fields if self.value is None else {**fields, "value": self.value}


class Predictor:
    """A run's base, adapter or merged model, loaded once.

    Args:
        run_dir: The run's folder.
        variant: base, adapter or merged. A base model without a trained head is replaced by a probe, or by a
            constant prediction if the training rows are gone; `fallback_note` says so.

    Raises:
        RunError, ModelError or HubError: If files are lost or changed.
    """

    def __init__(self, run_dir: str | Path, variant: str = ADAPTER) -> None:
        if variant not in VARIANTS:
            raise RunError(f"There is no variant {variant!r}; it is one of {', '.join(VARIANTS)}.")
        self.run, self.variant = Run(Path(run_dir)), variant
        self.classifier = Classifier.read(self.run)
        self.fallback_note = ""  # says what replaces a base model without a trained head
        if variant == BASE and self.classifier.head_is_fresh:
            self.model, self.tokenizer, self.fallback_note = self._load_fallback()
        else:
            self.model, self.tokenizer = load_variant(self.run, self.classifier, variant)
        if self.model is not None:
            self.model.eval()

    @property
    def decision_rule(self) -> DecisionRule:
        """The rule saved with the run; it is the adapter's, so a base model has the default rule."""
        return PLAIN if self.variant == BASE else DecisionRule.read(self.run)

    @property
    def shows_baseline(self) -> bool:
        """Whether there is no model and the best constant prediction replaces it."""
        return self.model is None

    def _load_fallback(self) -> tuple[Any, Any, str]:
        """Return a probe on the frozen base, its tokenizer and a note; only a note if the rows are gone."""
        base = load_adapter_base(self.run, self.classifier)
        try:
            probe, fitted = load_or_fit_probe(self.run, base, self.classifier)
        except (DataError, HubError):
            baselines = {MULTI: "most frequent set of labels", REGRESSION: "median"}
            baseline = baselines.get(self.classifier.problem_type, "majority class")
            return (
                None,
                None,
                f"This base model has no trained head, so the {baseline} of the training rows is shown.",
            )
        kind = "ridge" if self.classifier.problem_type == REGRESSION else "logistic"
        return (
            probe,
            base.tokenizer,
            f"This base model has no trained head: a {kind} regression on its frozen vectors, fitted on "
            f"{fitted.rows:,} training rows in {fitted.seconds:.1f} s, is used instead.",
        )

    def predict(
        self, texts: Sequence[str], text_pairs: Sequence[str | None] | None = None
    ) -> list[Prediction]:
        """Return one Prediction per text (and second text), in order.

        Raises:
            DataError: If a text is empty, or second texts are missing or not expected.
        """
        check_texts(texts)
        pairs = self._checked_pairs(texts, text_pairs)
        if self.shows_baseline:
            return [self._baseline() for _ in texts]
        start = time.perf_counter()
        logits = self.logits(texts, pairs)
        ms = 1000 * (time.perf_counter() - start) / len(texts)
        return predictions(logits, self.classifier, ms, self.decision_rule, self.fallback_note)

    def logits(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        progress: Callable[[float], None] = no_progress,
    ) -> np.ndarray:
        """Return logits, float32 of shape (texts, labels), in the order of the texts."""
        max_length = self.classifier.max_length
        return batched_logits(self.model, self.tokenizer, texts, max_length, progress, text_pairs=text_pairs)

    def note(self, text: str, text_pair: str | None = None) -> str:
        """Return a warning for the user if the text is truncated or unknown to the tokenizer; else empty."""
        if self.shows_baseline:
            return ""
        texts = [text] if text_pair is None else [text, text_pair]
        max_length = self.classifier.max_length
        truncated = [truncate_text(part, max_length) for part in texts]
        ids = self.tokenizer(*truncated, verbose=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        words = [i for i in ids if i == unknown or i not in self.tokenizer.all_special_ids]
        if words and all(i == unknown for i in words):
            return "The tokenizer does not know any of these characters, so the prediction is not reliable."
        if len(ids) > max_length or truncated != texts:
            return f"Only the first {max_length} tokens were read."
        return ""

    def _checked_pairs(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None
    ) -> Sequence[str] | None:
        second_texts = [pair for pair in pairs or () if pair is not None and pair != ""]
        if not self.classifier.text_pair:
            if second_texts:
                raise DataError(f"The run {self.run.run_id!r} reads one text; leave the second text empty.")
            return None
        are_texts = all(isinstance(pair, str) and pair.strip() for pair in second_texts)
        if len(second_texts) != len(texts) or not are_texts:
            raise DataError(f"The run {self.run.run_id!r} reads pairs; type the second text too.")
        return second_texts

    def _baseline(self) -> Prediction:
        result = self.run.result()
        baseline, shares = result["baseline"], result.get("train_label_shares", {})
        labels = None
        if self.classifier.problem_type == MULTI:
            labels = tuple(self.classifier.labels[i] for i in baseline["indices"])
        return Prediction(
            baseline["label"],
            shares,
            0.0,
            note=self.fallback_note,
            labels=labels,
            value=baseline.get("value"),
        )


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError if a text is empty or not a string."""
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError("The text is empty; type a sentence to classify.")


def predictions(
    logits: np.ndarray,
    classifier: Classifier,
    ms: float,
    decision_rule: DecisionRule = PLAIN,
    note: str = "",
) -> list[Prediction]:
    """Turn logits (texts, labels) into one Prediction per text, by a decision rule."""
    problem_type, names = classifier.problem_type, classifier.labels
    rows = zip(
        decision_rule.decide(logits, problem_type),
        decision_rule.probabilities(logits, problem_type).tolist(),
        decision_rule.confidence(logits, problem_type).tolist(),
        logits.tolist(),
        strict=True,
    )
    predicted = []
    for decided, probabilities, confidence, raw in rows:
        if problem_type == REGRESSION:
            number = float(decided)
            predicted.append(Prediction(f"{decided:.4g}", {}, ms, tuple(raw), note, value=number))
            continue
        labels = None
        if problem_type == MULTI:
            labels = tuple(names[i] for i in np.flatnonzero(decided))
        label = names[int(decided)] if labels is None else join_labels(labels)
        scores = dict(zip(names, probabilities, strict=True))
        abstained = confidence < decision_rule.abstain_below
        predicted.append(Prediction(label, scores, ms, tuple(raw), note, labels, None, confidence, abstained))
    return predicted
