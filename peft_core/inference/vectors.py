"""Sentence vectors of a run's encoder, base and adapted, and the rows that lie nearest to a text."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from peft_core.errors import DamagedError, DataError, MergeError
from peft_core.inference.batching import batched_outputs
from peft_core.inference.classifier import Classifier
from peft_core.inference.loading import load_adapter, load_adapter_base, merged_weights
from peft_core.inference.probe import mean_vectors
from peft_core.inference.review import Judged
from peft_core.manifests import verify_folder
from peft_core.methods import METHODS
from peft_core.problems import MULTI, REGRESSION
from peft_core.progress import Progress, unheard
from peft_core.runs import Run

BASE, ADAPTED = "base", "adapted"
VECTORS_FILE = "vectors/vectors.safetensors"
NEAREST, MOST = 10, 100
_BLOCK = 1024  # rows whose similarities to all others are held at a time


def vectors(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    progress: Callable[[float], None] = unheard,
) -> np.ndarray:
    """Mean of an encoder's last hidden states over each text's tokens, of length 1: float32 (texts, size)."""
    return batched_outputs(
        lambda batch: _mean_pooled(model, batch), tokenizer, texts, max_length, progress, device=model.device
    )


def _mean_pooled(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return nn.functional.normalize(mean_vectors(model, batch).float(), dim=-1)


def encoder_of(model: nn.Module) -> nn.Module:
    """A classifier without its head; an adapter that stands beside its weights stays there."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    return whole.base_model.eval()


def refuse_vectors(run: Run) -> None:
    """Raise MergeError where a run's method leaves no encoder of its own."""
    method = METHODS[run.config().method]
    if method.cannot_merge:
        raise MergeError(
            f"{method.label} leaves no encoder whose vectors could be taken: {method.cannot_merge}; train "
            "with a method that can be merged, such as LoRA."
        )


def merged_encoder(run: Run, model: nn.Module) -> nn.Module:
    """The encoder with the adapter in its weights; MergeError if a weight would not be a number."""
    return merged_weights(run, model).base_model


def label_precision(found: np.ndarray, judged: Judged, k: int = NEAREST) -> float | None:
    """How well neighbours share labels: the mean over all rows of what share of a row's `k` nearest other
    rows (cosine) has its label; of several labels the mean overlap of the two sets (Jaccard).

    None for numbers, for pairs, whose label is not that of the first text, and for fewer than two rows.
    """
    k = min(k, len(found) - 1)
    if judged.problem_type == REGRESSION or judged.rows.pairs is not None or k < 1:
        return None
    labels, total = judged.rows.labels, 0.0
    for start in range(0, len(found), _BLOCK):
        near = found[start : start + _BLOCK] @ found.T
        places = np.arange(len(near))
        near[places, start + places] = -np.inf  # no row is its own neighbour
        nearest = np.argpartition(-near, k - 1, axis=-1)[:, :k]
        total += _shared(labels[start + places][:, None], labels[nearest], judged.problem_type).sum()
    return float(total / (k * len(found)))


def _shared(one: np.ndarray, others: np.ndarray, problem_type: str) -> np.ndarray:
    """How much of their labels rows (n, 1) and their neighbours (n, k) share, from 0 to 1."""
    if problem_type != MULTI:
        return (one == others).astype(np.float64)
    either = (one | others).sum(-1)
    return np.where(either == 0, 1.0, (one & others).sum(-1) / np.maximum(either, 1))


class RowVectors:
    """The vectors of a run's test rows under base and adapted encoder, kept in the run's folder.

    They are made anew whenever the adapter, the base, the rows or the length are other ones.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.path = run, run.folder / VECTORS_FILE
        self.judged = Judged.read(run)
        self.fingerprint = _fingerprint(run, Classifier.read(run))

    def load(self) -> dict[str, np.ndarray] | None:
        """`base` and `adapted`, float32 (rows, size) of length 1; None if they must be made."""
        try:
            verify_folder(self.path.parent)
            with safe_open(self.path, framework="numpy") as file:
                if (file.metadata() or {}).get("fingerprint") != self.fingerprint:
                    return None
                found = {name: file.get_tensor(name) for name in (BASE, ADAPTED)}
        except (DamagedError, OSError, SafetensorError):
            return None
        return found if all(len(rows) == len(self.judged.rows) for rows in found.values()) else None

    def save(self, found: dict[str, np.ndarray]) -> None:
        """Keep them, whole or not at all."""
        with self.run.new_folder(self.path.parent) as staging:
            save_file(found, staging / self.path.name, metadata={"fingerprint": self.fingerprint})


def _fingerprint(run: Run, classifier: Classifier) -> str:
    """Of everything that the rows' vectors depend on."""
    digest = hashlib.sha256(f"{classifier.base_revision} {classifier.max_length}".encode())
    for path in (run.adapter / "adapter_model.safetensors", run.evaluation):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class Neighbours:
    """A search over a run's test rows by meaning: base and adapted encoder, loaded once.

    Raises MergeError for a method without an encoder of its own, and RunError, ModelError or HubError for
    files that are lost or changed.
    """

    def __init__(self, run_dir: str | Path, progress: Progress = unheard) -> None:
        run = Run(Path(run_dir))
        self._classifier = Classifier.read(run)
        refuse_vectors(run)
        kept = RowVectors(run)
        self._judged = kept.judged
        self._encoders, self._tokenizer = _encoders(run, self._classifier)
        rows = kept.load()
        if rows is None:
            rows = {name: self._of_rows(name, progress) for name in (BASE, ADAPTED)}
            kept.save(rows)
        self._rows = rows

    def nearest(self, query: str, k: int = NEAREST) -> dict[str, list[dict[str, Any]]]:
        """The `k` nearest rows under `base` and `adapted`, the nearest first, as `Judged.describe` gives
        them, with `similarity` (cosine). DataError for an empty query."""
        if not isinstance(query, str) or not query.strip():
            raise DataError("The search is empty; type a few words.")
        return {name: self._nearest(name, query, min(MOST, max(1, int(k)))) for name in (BASE, ADAPTED)}

    def precision(self) -> dict[str, float | None]:
        """`label_precision` of `base` and `adapted`."""
        return {name: label_precision(rows, self._judged) for name, rows in self._rows.items()}

    def _vectors(self, name: str, texts: Sequence[str], *progress: Callable[[float], None]) -> np.ndarray:
        most = self._classifier.max_length
        return vectors(self._encoders[name], self._tokenizer, texts, most, *progress)

    def _of_rows(self, name: str, progress: Progress) -> np.ndarray:
        texts, start = self._judged.rows.texts, 0.5 * (name == ADAPTED)
        what = f"Vectors of {len(texts):,} rows, {name} encoder"
        return self._vectors(name, texts, lambda share: progress(start + 0.5 * share, what))

    def _nearest(self, name: str, query: str, k: int) -> list[dict[str, Any]]:
        near = self._rows[name] @ self._vectors(name, [query])[0]
        places = np.argsort(-near, kind="stable")[:k]
        rows = self._judged.describe(places, [""] * len(places))
        return [{**row, "similarity": float(near[i])} for row, i in zip(rows, places, strict=True)]


def neighbours(run_dir: str | Path, query: str, k: int = NEAREST) -> dict[str, list[dict[str, Any]]]:
    """As `Neighbours.nearest`, for a single question."""
    return Neighbours(run_dir).nearest(query, k)


def _encoders(run: Run, classifier: Classifier) -> tuple[dict[str, nn.Module], Any]:
    """The two encoders, each with its own weights, and the tokenizer of both."""
    base, adapted = load_adapter_base(run, classifier), load_adapter_base(run, classifier)
    merged = merged_encoder(run, load_adapter(run, adapted))
    return {BASE: encoder_of(base.model), ADAPTED: merged}, base.tokenizer
