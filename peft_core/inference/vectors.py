"""Sentence vectors from a run's base and adapted encoders, and nearest-neighbor search over its test rows."""

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
from transformers import PreTrainedModel

from peft_core.errors import DamagedError, DataError, MergeError
from peft_core.files.manifests import verify_folder
from peft_core.inference.batching import batched_outputs
from peft_core.inference.classifier import Classifier
from peft_core.inference.loading import load_adapter, load_adapter_base, merged_weights
from peft_core.inference.probe import mean_vectors
from peft_core.inference.review import Evaluation
from peft_core.methods.registry import METHODS
from peft_core.problem_types import MULTI, REGRESSION
from peft_core.progress import Progress, no_progress
from peft_core.runs import Run

BASE, ADAPTED = "base", "adapted"
VECTORS_FILE = "vectors/vectors.safetensors"
NEAREST, MAX_NEIGHBORS = 10, 100
_BLOCK = 1024  # rows whose similarities to all others are in memory at a time


def vectors(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    progress: Callable[[float], None] = no_progress,
) -> np.ndarray:
    """Return the normalized mean of an encoder's last hidden states over each text: float32 (texts, size)."""
    return batched_outputs(
        lambda batch: _mean_pooled(model, batch),
        tokenizer,
        texts,
        max_length,
        progress,
        device=next(model.parameters()).device,
    )


def _mean_pooled(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return nn.functional.normalize(mean_vectors(model, batch).float(), dim=-1)


def encoder_of(model: nn.Module) -> nn.Module:
    """Return a classifier's encoder without the head; an unmerged adapter stays in it."""
    classifier = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(classifier, PreTrainedModel)
    return classifier.base_model.eval()


def check_has_encoder(run: Run) -> None:
    """Raise MergeError if a run's method cannot merge, so that there is no adapted encoder."""
    method = METHODS[run.config().method]
    if method.cannot_merge:
        raise MergeError(
            f"{method.label} has no adapted encoder for text vectors: {method.cannot_merge}; train "
            "with a method that can be merged, such as LoRA."
        )


def merged_encoder(run: Run, model: nn.Module) -> nn.Module:
    """Return the encoder with the adapter merged; MergeError if a weight would be NaN or infinite."""
    return merged_weights(run, model).base_model


def label_precision(embeddings: np.ndarray, evaluation: Evaluation, k: int = NEAREST) -> float | None:
    """Return how often near rows share labels, from 0 to 1.

    This is the mean over all rows of the share of a row's `k` nearest other rows (cosine) that have its
    label; multi-label: of the overlap of the two label sets (Jaccard).

    Returns:
        None for a regression, for pairs (whose label is not that of the first text alone), and for fewer than
        two rows.
    """
    k = min(k, len(embeddings) - 1)
    if evaluation.problem_type == REGRESSION or evaluation.rows.pairs is not None or k < 1:
        return None
    labels, total = evaluation.rows.labels, 0.0
    for start in range(0, len(embeddings), _BLOCK):
        similarity = embeddings[start : start + _BLOCK] @ embeddings.T
        indices = np.arange(len(similarity))
        similarity[indices, start + indices] = -np.inf  # a row is not its own neighbor
        nearest = np.argpartition(-similarity, k - 1, axis=-1)[:, :k]
        own = labels[start + indices][:, None]
        total += _label_overlap(own, labels[nearest], evaluation.problem_type).sum()
    return float(total / (k * len(embeddings)))


def _label_overlap(own: np.ndarray, neighbors: np.ndarray, problem_type: str) -> np.ndarray:
    """Return the label overlap of rows (n, 1) and their neighbors (n, k), from 0 to 1."""
    if problem_type != MULTI:
        return (own == neighbors).astype(np.float64)
    union = (own | neighbors).sum(-1)
    return np.where(union == 0, 1.0, (own & neighbors).sum(-1) / np.maximum(union, 1))


class RowVectors:
    """Vectors of a run's test rows from the base and adapted encoders, saved in the run's folder.

    Saved vectors are ignored if the adapter, the base, the rows or the maximum length have changed.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.path = run, run.folder / VECTORS_FILE
        self.evaluation = Evaluation.read(run)
        self.fingerprint = _fingerprint(run, Classifier.read(run))

    def load(self) -> dict[str, np.ndarray] | None:
        """Return `base` and `adapted`, normalized float32 (rows, size); None if they must be computed."""
        try:
            verify_folder(self.path.parent)
            with safe_open(self.path, framework="numpy") as file:
                if (file.metadata() or {}).get("fingerprint") != self.fingerprint:
                    return None
                embeddings = {name: file.get_tensor(name) for name in (BASE, ADAPTED)}
        except (DamagedError, OSError, SafetensorError):
            return None
        n_rows = len(self.evaluation.rows)
        return embeddings if all(len(rows) == n_rows for rows in embeddings.values()) else None

    def save(self, embeddings: dict[str, np.ndarray]) -> None:
        """Save the vectors under `base` and `adapted`, completely or not at all."""
        with self.run.new_folder(self.path.parent) as staging:
            save_file(embeddings, staging / self.path.name, metadata={"fingerprint": self.fingerprint})


def _fingerprint(run: Run, classifier: Classifier) -> str:
    """Return a SHA-256 of everything that the rows' vectors depend on."""
    digest = hashlib.sha256(f"{classifier.base_revision} {classifier.max_length}".encode())
    for path in (run.adapter / "adapter_model.safetensors", run.evaluation):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class NeighborSearch:
    """Nearest-neighbor search over a run's test rows, with the base and adapted encoders loaded once.

    Raises:
        MergeError: If the run's method cannot merge.
        RunError, ModelError or HubError: If files are lost or changed.
    """

    def __init__(self, run_dir: str | Path, progress: Progress = no_progress) -> None:
        run = Run(Path(run_dir))
        self._classifier = Classifier.read(run)
        check_has_encoder(run)
        row_vectors = RowVectors(run)
        self._evaluation = row_vectors.evaluation
        self._encoders, self._tokenizer = _encoders(run, self._classifier)
        embeddings = row_vectors.load()
        if embeddings is None:
            embeddings = {name: self._encode_rows(name, progress) for name in (BASE, ADAPTED)}
            row_vectors.save(embeddings)
        self._embeddings = embeddings

    def nearest(self, query: str, k: int = NEAREST) -> dict[str, list[dict[str, Any]]]:
        """Return the `k` nearest rows under `base` and `adapted`, nearest first.

        A row has the keys of `Evaluation.to_records` and `similarity` (cosine). Raises DataError for an empty
        query.
        """
        if not isinstance(query, str) or not query.strip():
            raise DataError("The search is empty; type a few words.")
        return {
            name: self._nearest(name, query, min(MAX_NEIGHBORS, max(1, int(k)))) for name in (BASE, ADAPTED)
        }

    def precision(self) -> dict[str, float | None]:
        """Return `label_precision` of `base` and `adapted`."""
        return {name: label_precision(rows, self._evaluation) for name, rows in self._embeddings.items()}

    def _encode(self, name: str, texts: Sequence[str], *progress: Callable[[float], None]) -> np.ndarray:
        max_length = self._classifier.max_length
        return vectors(self._encoders[name], self._tokenizer, texts, max_length, *progress)

    def _encode_rows(self, name: str, progress: Progress) -> np.ndarray:
        texts, start = self._evaluation.rows.texts, 0.5 * (name == ADAPTED)
        message = f"Vectors of {len(texts):,} rows, {name} encoder"
        return self._encode(name, texts, lambda share: progress(start + 0.5 * share, message))

    def _nearest(self, name: str, query: str, k: int) -> list[dict[str, Any]]:
        similarity = self._embeddings[name] @ self._encode(name, [query])[0]
        indices = np.argsort(-similarity, kind="stable")[:k]
        rows = self._evaluation.to_records(indices, [""] * len(indices))
        return [{**row, "similarity": float(similarity[i])} for row, i in zip(rows, indices, strict=True)]


def find_neighbors(run_dir: str | Path, query: str, k: int = NEAREST) -> dict[str, list[dict[str, Any]]]:
    """Return `NeighborSearch.nearest` for a single query."""
    return NeighborSearch(run_dir).nearest(query, k)


def _encoders(run: Run, classifier: Classifier) -> tuple[dict[str, nn.Module], Any]:
    """Return the two encoders, each with its own weights, and their tokenizer."""
    base, adapted = load_adapter_base(run, classifier), load_adapter_base(run, classifier)
    merged = merged_encoder(run, load_adapter(run, adapted))
    return {BASE: encoder_of(base.model), ADAPTED: merged}, base.tokenizer
