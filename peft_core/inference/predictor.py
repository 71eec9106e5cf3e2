"""Texts to labels or numbers, from a run's base model, its adapter or its merged model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peft_core.data.labelled import cut
from peft_core.errors import DataError, HubError, RunError
from peft_core.inference.batching import batched_logits
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import PLAIN, Decision
from peft_core.inference.loading import ADAPTER, BASE, VARIANTS, load_adapter_base, load_variant
from peft_core.inference.probe import probe_of
from peft_core.problems import MULTI, REGRESSION, joined
from peft_core.progress import unheard
from peft_core.runs import Run


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text, and the milliseconds it took.

    One label: `label`, and in `scores` the probability of every label (sum 1). Several: `labels` with a
    probability over their threshold, joined in `label`, and each label's own probability. A number: `value`,
    also as text in `label`, and no scores. `abstained` where the confidence is below the run's own bound.
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
        """As JSON types: `label`, `scores`, `ms`, `note`, `confidence`, `abstained`, and `labels` or `value`
        where the task has them."""
        found = {"label": self.label, "scores": self.scores, "ms": self.ms, "note": self.note}
        if self.confidence is not None:
            found |= {"confidence": self.confidence, "abstained": self.abstained}
        if self.labels is not None:
            found["labels"] = list(self.labels)
        return found if self.value is None else {**found, "value": self.value}


class Predictor:
    """A run's base, adapter or merged model, loaded once. Raises RunError, ModelError or HubError."""

    def __init__(self, run_dir: str | Path, variant: str = ADAPTER) -> None:
        if variant not in VARIANTS:
            raise RunError(f"There is no variant {variant!r}; it is one of {', '.join(VARIANTS)}.")
        self.run, self.variant = Run(Path(run_dir)), variant
        self.classifier = Classifier.read(self.run)
        self.standing_in = ""  # in words, what stands in for a base model whose head was never trained
        if variant == BASE and self.classifier.head_is_fresh:
            self.model, self.tokenizer, self.standing_in = self._stand_in()
        else:
            self.model, self.tokenizer = load_variant(self.run, self.classifier, variant)
        if self.model is not None:
            self.model.eval()

    @property
    def decision(self) -> Decision:
        """The rule saved with the run, as it is now; it is the adapter's, and says nothing of a base."""
        return PLAIN if self.variant == BASE else Decision.read(self.run)

    @property
    def shows_baseline(self) -> bool:
        """Whether the best constant answer stands in: there is no model to ask."""
        return self.model is None

    def _stand_in(self) -> tuple[Any, Any, str]:
        """A probe on the frozen base, or nothing but words where the training rows are gone."""
        base = load_adapter_base(self.run, self.classifier)
        try:
            probe, fitted = probe_of(self.run, base, self.classifier)
        except (DataError, HubError):
            task = self.classifier.problem_type
            what = {MULTI: "most frequent set of labels", REGRESSION: "median"}.get(task, "majority class")
            return (
                None,
                None,
                f"This base model has no trained head, so the {what} of the training rows is shown.",
            )
        kind = "ridge" if self.classifier.problem_type == REGRESSION else "logistic"
        return (
            probe,
            base.tokenizer,
            f"This base model has no trained head: a {kind} regression on its frozen vectors, fitted on "
            f"{fitted.rows:,} training rows in {fitted.seconds:.1f} s, stands in.",
        )

    def predict(
        self, texts: Sequence[str], text_pairs: Sequence[str | None] | None = None
    ) -> list[Prediction]:
        """One Prediction a text (and its second text), in order.

        Raises DataError for a text that is empty, or pairs where the run has none and the other way round.
        """
        check_texts(texts)
        pairs = self._checked_pairs(texts, text_pairs)
        if self.shows_baseline:
            return [self._baseline() for _ in texts]
        start = time.perf_counter()
        logits = self.logits(texts, pairs)
        ms = 1000 * (time.perf_counter() - start) / len(texts)
        return predictions(logits, self.classifier, ms, self.decision, self.standing_in)

    def logits(
        self,
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        progress: Callable[[float], None] = unheard,
    ) -> np.ndarray:
        """Raw outputs, float32 of shape (texts, labels), in the order of the texts."""
        most = self.classifier.max_length
        return batched_logits(self.model, self.tokenizer, texts, most, progress, text_pairs=text_pairs)

    def note(self, text: str, text_pair: str | None = None) -> str:
        """What a person should know of how this text was read; empty if there is nothing to say."""
        if self.shows_baseline:
            return ""
        texts = [text] if text_pair is None else [text, text_pair]
        most = self.classifier.max_length
        short = [cut(one, most) for one in texts]
        ids = self.tokenizer(*short, verbose=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        words = [i for i in ids if i == unknown or i not in self.tokenizer.all_special_ids]
        if words and all(i == unknown for i in words):
            return "The tokenizer knows none of these characters, so the answer means little."
        if len(ids) > most or short != texts:
            return f"Only the first {most} tokens were read."
        return ""

    def _checked_pairs(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None
    ) -> Sequence[str] | None:
        given = [pair for pair in pairs or () if pair not in (None, "")]
        if not self.classifier.text_pair:
            if given:
                raise DataError(f"The run {self.run.run_id!r} reads one text; leave the second text empty.")
            return None
        if len(given) != len(texts) or not all(isinstance(pair, str) and pair.strip() for pair in given):
            raise DataError(f"The run {self.run.run_id!r} reads pairs; type the second text too.")
        return given

    def _baseline(self) -> Prediction:
        result = self.run.result()
        best, shares = result["baseline"], result.get("train_label_shares", {})
        several = self.classifier.problem_type == MULTI
        labels = tuple(self.classifier.labels[i] for i in best["indices"]) if several else None
        return Prediction(
            best["label"], shares, 0.0, note=self.standing_in, labels=labels, value=best.get("value")
        )


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError for a text that is no text, or is empty."""
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError("The text is empty; type a sentence to classify.")


def predictions(
    logits: np.ndarray,
    classifier: Classifier,
    ms: float,
    decision: Decision = PLAIN,
    note: str = "",
) -> list[Prediction]:
    """What raw outputs (texts, labels) say of each text, by a decision's rule."""
    task, names = classifier.problem_type, classifier.labels
    rows = zip(
        decision.decide(logits, task),
        decision.probabilities(logits, task).tolist(),
        decision.confidence(logits, task).tolist(),
        logits.tolist(),
        strict=True,
    )
    found = []
    for decided, shares, sure, raw in rows:
        if task == REGRESSION:
            label, each, more = f"{decided:.4g}", {}, {"value": float(decided)}
        else:
            given = tuple(names[i] for i in np.flatnonzero(decided)) if task == MULTI else None
            label = joined(given) if given is not None else names[int(decided)]
            each = dict(zip(names, shares, strict=True))
            more = {"labels": given, "confidence": sure, "abstained": sure < decision.abstain_below}
        found.append(Prediction(label, each, ms, tuple(raw), note, **more))
    return found
