"""A linear probe on a frozen base model, for comparison where the base has no trained head."""

import time
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from peft_core.data.labelled import LabeledSplits, load_labeled_splits
from peft_core.errors import DamagedError, DataError
from peft_core.files.manifests import verify_folder
from peft_core.inference.batching import batched_outputs
from peft_core.inference.classifier import Classifier
from peft_core.models.encoder import BaseModel
from peft_core.problem_types import MULTI, REGRESSION
from peft_core.runs import Run
from peft_core.training.recorded_inputs import read_inputs

SECONDS = 2.0  # of encoding, after which no more rows are added: the user waits for it
MIN_ROWS, MAX_ROWS = 256, 1000
PROBE_FILE = "probe/probe.safetensors"
MAX_CACHED = 64  # fitted probes kept in memory


class Probe(nn.Module):
    """A frozen encoder, mean pooling and one linear layer, with the interface of a classifier."""

    def __init__(self, encoder: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.encoder, self.weight, self.bias = encoder, weight, bias
        self.config = SimpleNamespace(num_labels=len(bias))

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Return an object with `logits` of shape (texts, labels)."""
        vectors = mean_vectors(self.encoder, batch)
        weight, bias = self.weight.to(vectors.device), self.bias.to(vectors.device)
        return SimpleNamespace(logits=vectors @ weight.T + bias)


@dataclass(frozen=True)
class FittedProbe:
    """A fitted linear layer.

    Attributes:
        weight: float32 (labels, width).
        bias: float32 (labels,).
        rows: Number of training rows used.
        seconds: Duration of the fit, with encoding.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    rows: int
    seconds: float


_fitted_probes: dict[tuple[Hashable, ...], FittedProbe] = {}  # oldest first


def mean_vectors(encoder: Any, batch: Any) -> torch.Tensor:
    """Return the mean of each text's last hidden states, (texts, width), without padding."""
    hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def load_or_fit_probe(run: Run, base: BaseModel, classifier: Classifier) -> tuple[Probe, FittedProbe]:
    """Return the run's probe; it is fitted on the training rows at first use and saved in the run's folder.

    A probe that this process fitted to the same rows and base model is reused: most visitors of a demo train
    on the same data.

    Raises:
        DataError or HubError: If the rows are gone, or have other labels now than the classifier.
    """
    fitted = _read(run.folder / PROBE_FILE)
    if fitted is None:
        fitted = _fit_or_reuse(run, base, classifier)
        _write(run, fitted)
    return Probe(base.model.base_model, fitted.weight, fitted.bias), fitted


def _fit_or_reuse(run: Run, base: BaseModel, classifier: Classifier) -> FittedProbe:
    key = _cache_key(run)
    if key in _fitted_probes:
        return _fitted_probes[key]
    fitted = _fit(run, base, classifier)
    if key is not None:
        _fitted_probes[key] = fitted
        if len(_fitted_probes) > MAX_CACHED:
            _fitted_probes.pop(next(iter(_fitted_probes)))
    return fitted


def _cache_key(run: Run) -> tuple[Hashable, ...] | None:
    """Return all that a probe depends on, from the run's record; None if the record is damaged."""
    try:
        inputs = read_inputs(run.folder)
    except DamagedError:
        return None
    rows = inputs.splits["train"].sha256
    base = (inputs.base_model_name_or_path, inputs.base_revision, inputs.base_config_sha256)
    tokenization = (inputs.tokenizer_sha256, inputs.settings["max_length"])
    return (rows, inputs.problem_type, tuple(inputs.label_names), *base, *tokenization)


def _fit(run: Run, base: BaseModel, classifier: Classifier) -> FittedProbe:
    start, config = time.perf_counter(), run.config()
    data = load_labeled_splits(config)
    if not _same_labels(data, classifier):
        raise DataError(f"The training rows of {run.run_id!r} have other labels now than when it trained.")
    rows = data.train.select(range(min(MAX_ROWS, len(data.train))))
    vectors = _vectors(base, rows, config.max_length)
    weight, bias = fit_linear(data, vectors, np.asarray(rows["label"][: len(vectors)]))
    return FittedProbe(
        torch.tensor(weight, dtype=torch.float32),
        torch.tensor(bias, dtype=torch.float32),
        len(vectors),
        time.perf_counter() - start,
    )


def _write(run: Run, fitted: FittedProbe) -> None:
    path = run.folder / PROBE_FILE
    with run.new_folder(path.parent) as staging:
        metadata = {"rows": str(fitted.rows), "seconds": f"{fitted.seconds:.3f}"}
        save_file({"weight": fitted.weight, "bias": fitted.bias}, staging / path.name, metadata=metadata)


def _same_labels(data: LabeledSplits, classifier: Classifier) -> bool:
    """Return whether the rows still have the classifier's problem type and labels.

    Only their number is compared where the data holds bare numbers instead of names.
    """
    names = (
        data.label_names if data.has_label_names and data.problem_type != REGRESSION else classifier.labels
    )
    return (data.problem_type, data.num_labels, names) == (
        classifier.problem_type,
        len(classifier.labels),
        classifier.labels,
    )


def _vectors(base: BaseModel, rows: Any, max_length: int) -> np.ndarray:
    """Return mean vectors of as many rows as SECONDS allow, float32 (rows, width)."""
    encoder, parts, start = base.model.base_model.eval(), [], time.perf_counter()
    for first in range(0, len(rows), MIN_ROWS):
        part = rows[first : first + MIN_ROWS]
        parts.append(
            batched_outputs(
                lambda batch: mean_vectors(encoder, batch),
                base.tokenizer,
                part["text"],
                max_length,
                device=base.model.device,
                text_pairs=part.get("text_pair"),
            )
        )
        if time.perf_counter() - start > SECONDS:
            break
    return np.concatenate(parts)


def fit_linear(data: LabeledSplits, vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a ridge regression or logistic regressions; return weight (labels, width) and bias (labels,)."""
    if data.problem_type == REGRESSION:
        ridge = Ridge().fit(vectors, labels)
        return ridge.coef_[None], np.array([ridge.intercept_])
    if data.problem_type == MULTI:
        parts = [_fit_binary(vectors, labels[:, i]) for i in range(data.num_labels)]
        return np.stack([weight for weight, _ in parts]), np.array([bias for _, bias in parts])
    classes = np.unique(labels)
    weight, bias = np.zeros((data.num_labels, vectors.shape[1])), np.full(data.num_labels, -1e4)
    if len(classes) == 1:
        bias[classes] = 0.0
        return weight, bias
    model = LogisticRegression(max_iter=1000).fit(vectors, labels)
    if len(classes) == 2:  # one row of weights, for the second label
        weight[classes[1]], bias[classes[0]], bias[classes[1]] = model.coef_[0], 0.0, model.intercept_[0]
    else:
        weight[classes], bias[classes] = model.coef_, model.intercept_
    return weight, bias


def _fit_binary(vectors: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, float]:
    if len(np.unique(targets)) == 1:
        return np.zeros(vectors.shape[1]), 1e4 if targets[0] else -1e4
    model = LogisticRegression(max_iter=1000).fit(vectors, targets)
    return model.coef_[0], float(model.intercept_[0])


def _read(path: Path) -> FittedProbe | None:
    """Read a saved probe; None if there is none, or it is damaged."""
    try:
        verify_folder(path.parent)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            return FittedProbe(weight, bias, int(metadata["rows"]), float(metadata["seconds"]))
    except (DamagedError, OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
