"""Texts to labels or numbers, from a run's base model, its adapter or its merged model."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_core.data.labelled import cut
from peft_core.encoder import BaseModel, has_tokenizer, load_base
from peft_core.errors import DataError, ModelError, RunError
from peft_core.methods import METHODS, bits_of
from peft_core.problems import MULTI, REGRESSION, decide, joined, scores
from peft_core.quantise import FULL
from peft_core.runs import Run
from peft_core.sources import hub_commit

BASE, ADAPTER, MERGED = VARIANTS = ("base", "adapter", "merged")
BATCH_SIZE = 64
CLASSIFIER_FILE = "classifier.json"
_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class Classifier:
    """What `adapter_config.json` does not hold and an adapter cannot be used without (`classifier.json`)."""

    labels: tuple[str, ...]
    max_length: int
    base_model_name_or_path: str
    base_revision: str | None
    untrained: tuple[str, ...]
    head_is_fresh: bool
    problem_type: str = "single_label_classification"
    text_pair: bool = False  # whether it was trained on pairs of texts

    @classmethod
    def read(cls, run: Run) -> "Classifier":
        """From a run's adapter folder; RunError if the run has no adapter or has lost files of it."""
        if not run.has_adapter:
            status = run.state()["status"]
            raise RunError(f"The run {run.run_id!r} has no adapter (it is {status}); pick a finished run.")
        path = run.adapter / CLASSIFIER_FILE
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            labels = tuple(held.pop("id2label").values())
            return cls(labels=labels, untrained=tuple(held.pop("untrained")), **held)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"The adapter of {run.run_id!r} has lost its {CLASSIFIER_FILE}; train it again."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, the labels in the form of a model's config."""
        return {
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "problem_type": self.problem_type,
            "max_length": self.max_length,
            "base_model_name_or_path": self.base_model_name_or_path,
            "base_revision": self.base_revision,
            "untrained": list(self.untrained),
            "head_is_fresh": self.head_is_fresh,
            "text_pair": self.text_pair,
        }


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text, and the milliseconds it took.

    One label: `label`, and in `scores` the probability of every label (sum 1). Several: `labels` with a
    probability of at least 0.5, joined in `label`, and each label's own probability. A number: `value`, also
    as text in `label`, and no scores.
    """

    label: str
    scores: dict[str, float]
    ms: float
    logits: tuple[float, ...] = ()
    note: str = ""
    labels: tuple[str, ...] | None = None
    value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: `label`, `scores`, `ms`, `note`, and `labels` or `value` where the task has them."""
        found = {"label": self.label, "scores": self.scores, "ms": self.ms, "note": self.note}
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
        self.model, self.tokenizer = None, None
        if not self.shows_baseline:
            self.model, self.tokenizer = _load(self.run, self.classifier, variant)
            self.model.eval()

    @property
    def shows_baseline(self) -> bool:
        """Whether the best constant answer stands in for a base model whose head was never trained."""
        return self.variant == BASE and self.classifier.head_is_fresh

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
        return predictions(logits, self.classifier, ms)

    def logits(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> np.ndarray:
        """Raw outputs, float32 of shape (texts, labels), in the order of the texts."""
        most = self.classifier.max_length
        return batched_logits(self.model, self.tokenizer, texts, most, text_pairs=text_pairs)

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
        task = self.classifier.problem_type
        labels = tuple(self.classifier.labels[i] for i in best["indices"]) if task == MULTI else None
        what = "median" if task == REGRESSION else "most frequent set of labels" if task == MULTI else ""
        note = (
            f"This base model has no trained head, so the {what or 'majority class'} of the training rows "
            "is shown."
        )
        return Prediction(best["label"], shares, 0.0, note=note, labels=labels, value=best.get("value"))


def check_texts(texts: Sequence[str]) -> None:
    """Raise DataError for a text that is no text, or is empty."""
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError("The text is empty; type a sentence to classify.")


def batched_logits(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    progress: Callable[[float], None] = lambda share: None,
    *,
    text_pairs: Sequence[str] | None = None,
) -> np.ndarray:
    """Raw outputs, float32 (texts, labels) in the order given; batched by length, so little is padded."""
    sides = [texts] if text_pairs is None else [texts, text_pairs]
    short = [[cut(text, max_length) for text in side] for side in sides]
    rows = tokenizer(*short, truncation=True, max_length=max_length)
    order = np.argsort([-len(ids) for ids in rows["input_ids"]], kind="stable")
    out = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        batch = tokenizer.pad({key: [rows[key][i] for i in chosen] for key in rows}, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**batch.to(model.device)).logits
        out[chosen] = logits.float().cpu().numpy()
        progress(min(1.0, (start + BATCH_SIZE) / len(order)))
    return out


def predictions(logits: np.ndarray, classifier: Classifier, ms: float) -> list[Prediction]:
    """What raw outputs (texts, labels) say of each text."""
    task, names = classifier.problem_type, classifier.labels
    rows = zip(decide(logits, task), scores(logits, task).tolist(), logits.tolist(), strict=True)
    found = []
    for decided, shares, raw in rows:
        if task == REGRESSION:
            found.append(Prediction(f"{decided:.4g}", {}, ms, tuple(raw), value=float(decided)))
            continue
        each = dict(zip(names, shares, strict=True))
        given = tuple(names[i] for i in np.flatnonzero(decided)) if task == MULTI else None
        label = joined(given) if given is not None else names[int(decided)]
        found.append(Prediction(label, each, ms, tuple(raw), labels=given))
    return found


def load_adapter_base(run: Run, classifier: Classifier, bits: int = FULL) -> BaseModel:
    """The very base model of the adapter; ModelError, naming both hashes, if it has changed."""
    revision = classifier.base_revision
    base = load_base(
        classifier.base_model_name_or_path,
        hub_commit(revision),
        classifier.labels,
        problem_type=classifier.problem_type,
        bits=bits,
    )
    if base.source.revision != revision:
        raise ModelError(
            f"The base model {base.source.name!r} has changed since {run.run_id!r} was trained "
            f"(it was {revision}, now {base.source.revision}); put the old one back or train again."
        )
    return base


def load_adapter(run: Run, base: BaseModel) -> nn.Module:
    """The run's adapter (or the weights it trained) on its base; RunError if files are lost or damaged."""
    try:
        if METHODS[run.config().method].peft_config is None:
            return _load_weights(base.model, run.adapter / "adapter_model.safetensors")
        if not (run.adapter / "adapter_config.json").is_file():
            raise OSError("it holds no adapter_config.json")  # else PEFT asks the Hub for one
        return PeftModel.from_pretrained(base.model, run.adapter)
    except _DAMAGED as error:
        raise RunError(f"The adapter of {run.run_id!r} has lost or damaged files; train it again.") from error


def _load_weights(model: nn.Module, path: Path) -> nn.Module:
    trained = load_file(path)
    unknown = model.load_state_dict(trained, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"it has no {unknown[0]}")
    return model


def _load(run: Run, classifier: Classifier, variant: str) -> tuple[Any, Any]:
    if variant == MERGED:
        if not (run.merged / "model.safetensors").is_file():
            raise RunError(f"The run {run.run_id!r} is not merged yet; merge it first.")
        return _load_merged(run)
    if variant == BASE:
        base = load_adapter_base(run, classifier)
        return base.model, base.tokenizer
    base = load_adapter_base(run, classifier, bits_of(run.config().to_dict()))  # as it was trained
    return load_adapter(run, base), base.tokenizer


def _load_merged(run: Run) -> tuple[Any, Any]:
    try:
        if not has_tokenizer(run.merged):
            raise OSError("it holds no tokenizer")
        model = AutoModelForSequenceClassification.from_pretrained(
            run.merged, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
        return model, AutoTokenizer.from_pretrained(run.merged, trust_remote_code=False)
    except _DAMAGED as error:
        raise RunError(f"The merged model of {run.run_id!r} has lost files; merge it again.") from error
