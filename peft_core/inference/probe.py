"""A head-only probe: what a base model knows before any adapter, where its own head was never trained."""

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

from peft_core.data.labelled import LabelledText, load_labelled_text
from peft_core.encoder import BaseModel
from peft_core.errors import DamagedError, DataError
from peft_core.inference.batching import batched_outputs
from peft_core.inference.classifier import Classifier
from peft_core.manifests import verify_folder
from peft_core.problems import MULTI, REGRESSION
from peft_core.runs import Run
from peft_core.training.inputs import read_inputs

SECONDS = 2.0  # of encoding; a large model sees fewer rows rather than keeping a person waiting
LEAST_ROWS, MOST_ROWS = 256, 1000
PROBE_FILE = "probe/probe.safetensors"
MOST_REUSED = 64


class Probe(nn.Module):
    """A frozen encoder, the mean of its token vectors, and one linear layer; called as a classifier is."""

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
        """`logits` of shape (texts, labels)."""
        vectors = mean_vectors(self.encoder, batch)
        weight, bias = self.weight.to(vectors.device), self.bias.to(vectors.device)
        return SimpleNamespace(logits=vectors @ weight.T + bias)


@dataclass(frozen=True)
class Fitted:
    """weight (labels, width) and bias (labels,), float32; from how many rows, and the seconds it took."""

    weight: torch.Tensor
    bias: torch.Tensor
    rows: int
    seconds: float


_reused: dict[tuple[Hashable, ...], Fitted] = {}  # in the order in which they were fitted


def mean_vectors(encoder: Any, batch: Any) -> torch.Tensor:
    """The mean of each text's token vectors, (texts, width), padding left out."""
    hidden = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def probe_of(run: Run, base: BaseModel, classifier: Classifier) -> tuple[Probe, Fitted]:
    """The run's probe, fitted on its training rows when first asked for and kept in its folder.

    One that was fitted in this process on the same rows and base model is taken again: most visitors of a
    demo train the same data. Raises DataError or HubError if the rows are gone, or name other labels than the
    classifier by now.
    """
    fitted = _read(run.folder / PROBE_FILE)
    if fitted is None:
        fitted = _fit_or_reuse(run, base, classifier)
        _write(run, fitted)
    return Probe(base.model.base_model, fitted.weight, fitted.bias), fitted


def _fit_or_reuse(run: Run, base: BaseModel, classifier: Classifier) -> Fitted:
    key = _fitted_on(run)
    if key in _reused:
        return _reused[key]
    fitted = _fit(run, base, classifier)
    if key is not None:
        _reused[key] = fitted
        if len(_reused) > MOST_REUSED:
            _reused.pop(next(iter(_reused)))
    return fitted


def _fitted_on(run: Run) -> tuple[Hashable, ...] | None:
    """All that a probe depends on, as the run recorded it; None for a run without a whole record."""
    try:
        inputs = read_inputs(run.folder)
    except DamagedError:
        return None
    rows = inputs.splits["train"].sha256
    base = (inputs.base_model_name_or_path, inputs.base_revision, inputs.base_config_sha256)
    read = (inputs.tokenizer_sha256, inputs.settings["max_length"])
    return (rows, inputs.problem_type, tuple(inputs.label_names), *base, *read)


def _fit(run: Run, base: BaseModel, classifier: Classifier) -> Fitted:
    start, config = time.perf_counter(), run.config()
    data = load_labelled_text(config)
    if not _agree(data, classifier):
        raise DataError(f"The training rows of {run.run_id!r} have other labels now than when it trained.")
    rows = data.train.select(range(min(MOST_ROWS, len(data.train))))
    vectors = _vectors(base, rows, config.max_length)
    weight, bias = fit_linear(data, vectors, np.asarray(rows["label"][: len(vectors)]))
    return Fitted(
        torch.tensor(weight, dtype=torch.float32),
        torch.tensor(bias, dtype=torch.float32),
        len(vectors),
        time.perf_counter() - start,
    )


def _write(run: Run, fitted: Fitted) -> None:
    path = run.folder / PROBE_FILE
    with run.new_folder(path.parent) as staging:
        facts = {"rows": str(fitted.rows), "seconds": f"{fitted.seconds:.3f}"}
        save_file({"weight": fitted.weight, "bias": fitted.bias}, staging / path.name, metadata=facts)
    return fitted


def _agree(data: LabelledText, classifier: Classifier) -> bool:
    """Whether rows read anew are of the task and the labels that were trained; bare numbers have no names."""
    names = data.label_names if data.named and data.problem_type != REGRESSION else classifier.labels
    return (data.problem_type, data.num_labels, names) == (
        classifier.problem_type,
        len(classifier.labels),
        classifier.labels,
    )


def _vectors(base: BaseModel, rows: Any, max_length: int) -> np.ndarray:
    """Mean vectors of as many rows as the time allows, float32 (rows, width)."""
    encoder, found, start = base.model.base_model.eval(), [], time.perf_counter()
    for first in range(0, len(rows), LEAST_ROWS):
        part = rows[first : first + LEAST_ROWS]
        found.append(
            batched_outputs(
                lambda batch: mean_vectors(encoder, batch),
                base.tokenizer,
                part["text"],
                max_length,
                device=encoder.device,
                text_pairs=part.get("text_pair"),
            )
        )
        if time.perf_counter() - start > SECONDS:
            break
    return np.concatenate(found)


def fit_linear(data: LabelledText, vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight (labels, width) and bias (labels,) of a ridge or of logistic regressions."""
    if data.problem_type == REGRESSION:
        ridge = Ridge().fit(vectors, labels)
        return ridge.coef_[None], np.array([ridge.intercept_])
    if data.problem_type == MULTI:
        parts = [_yes_or_no(vectors, labels[:, i]) for i in range(data.num_labels)]
        return np.stack([weight for weight, _ in parts]), np.array([bias for _, bias in parts])
    seen = np.unique(labels)
    weight, bias = np.zeros((data.num_labels, vectors.shape[1])), np.full(data.num_labels, -1e4)
    if len(seen) == 1:
        bias[seen] = 0.0
        return weight, bias
    model = LogisticRegression(max_iter=1000).fit(vectors, labels)
    if len(seen) == 2:  # one row of weights, for the second label
        weight[seen[1]], bias[seen[0]], bias[seen[1]] = model.coef_[0], 0.0, model.intercept_[0]
    else:
        weight[seen], bias[seen] = model.coef_, model.intercept_
    return weight, bias


def _yes_or_no(vectors: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, float]:
    if len(np.unique(given)) == 1:
        return np.zeros(vectors.shape[1]), 1e4 if given[0] else -1e4
    model = LogisticRegression(max_iter=1000).fit(vectors, given)
    return model.coef_[0], float(model.intercept_[0])


def _read(path: Path) -> Fitted | None:
    """A probe kept before; None if there is none, or it is damaged and must be fitted again."""
    try:
        verify_folder(path.parent)
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            return Fitted(weight, bias, int(facts["rows"]), float(facts["seconds"]))
    except (DamagedError, OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
