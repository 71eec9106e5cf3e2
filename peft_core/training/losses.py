"""Losses that transformers does not have: class weights, label smoothing, and standardized regression."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from peft_core.config import TrainConfig
from peft_core.errors import ConfigError, ModelError
from peft_core.models.modules import output_layer
from peft_core.problem_types import REGRESSION, SINGLE
from peft_core.runs.kept_step import metric_for_best

Loss = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class LabelScale:
    """The mean and the standard deviation of the training labels of a regression.

    A fresh head starts near 0 and moves by about the learning rate per step, so it would never reach prices
    in thousands. It therefore learns (label - mean) / std, and `fold_into` converts the trained model to the
    unit of the labels.
    """

    mean: float
    std: float

    @classmethod
    def from_labels(cls, labels: ArrayLike) -> "LabelScale":
        """Return the scale of the labels; a standard deviation of 0 becomes 1."""
        values = np.asarray(labels, dtype=np.float64)
        return cls(float(values.mean()), float(values.std()) or 1.0)

    def inverse_transform(self, standardized: np.ndarray) -> np.ndarray:
        """Return standardized numbers in the unit of the labels."""
        return standardized * self.std + self.mean

    def fold_into(self, model: nn.Module) -> None:
        """Rescale the output layer so that a model of standardized numbers returns the unit of the labels."""
        layer = _output_layer(model)
        with torch.no_grad():
            layer.weight.mul_(self.std)
            layer.bias.mul_(self.std).add_(self.mean)

    def unfold_from(self, model: nn.Module) -> None:
        """Invert `fold_into`: rescale the output layer so that the model returns standardized numbers."""
        layer = _output_layer(model)
        with torch.no_grad():
            layer.weight.div_(self.std)
            layer.bias.sub_(self.mean).div_(self.std)


def balanced_weights(counts: ArrayLike) -> np.ndarray:
    """Return n / (k * count) for each of k labels, as scikit-learn's `class_weight="balanced"`.

    The mean over the rows is 1, so that the loss keeps its size. A label without rows gets 0.
    """
    rows = np.asarray(counts, dtype=np.float64)
    used = rows > 0
    weights = np.zeros_like(rows)
    weights[used] = rows.sum() / (used.sum() * rows[used])
    return weights


def positive_weights(labels: ArrayLike) -> np.ndarray:
    """Return torch's `pos_weight` for labels of shape (rows, labels): negative rows per positive row.

    A label without rows gets 1.
    """
    indicators = np.asarray(labels, dtype=np.float64)
    positive = indicators.sum(0)
    return np.where(positive > 0, (len(indicators) - positive) / np.maximum(positive, 1), 1.0)


def check_objective(config: TrainConfig, problem_type: str) -> None:
    """Raise ConfigError for a loss or a metric for the best step that the problem type does not have."""
    metric_for_best(config, problem_type)
    if problem_type == REGRESSION and config.class_weight != "none":
        raise ConfigError(
            "class_weight is 'balanced', but the labels are numbers, which have no classes; set it to none."
        )
    if problem_type == REGRESSION and config.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor is {config.label_smoothing_factor:g}, but the labels are numbers, "
            "which have no classes to smooth over; set it to 0."
        )


def task_loss(config: TrainConfig, problem_type: str, labels: ArrayLike, num_labels: int) -> Loss | None:
    """Return Trainer's `compute_loss_func` for the training labels; None if the model's own loss is enough.

    The loss divides by `num_items_in_batch` (labels in all batches of a step), as transformers' losses do.

    `label_smoothing_factor` e: with a single label, the target is 1 - e for the label plus e / k for each of
    the k labels (Szegedy et al. 2016, section 7; with class weights as torch's `cross_entropy` combines the
    two). With multiple labels, each label is a binary decision with the targets e / 2 and 1 - e / 2.
    """
    if problem_type == REGRESSION:
        return _squared_error(LabelScale.from_labels(labels))
    smoothing = config.label_smoothing_factor
    if config.class_weight == "none":
        return _weighted(problem_type, None, smoothing) if smoothing else None
    if problem_type == SINGLE:
        counts = np.bincount(np.asarray(labels), minlength=num_labels)
        weights = torch.tensor(balanced_weights(counts), dtype=torch.float32)
    else:
        weights = torch.tensor(positive_weights(labels), dtype=torch.float32)
    return _weighted(problem_type, weights, smoothing)


def eval_loss(problem_type: str, logits: np.ndarray, labels: np.ndarray, loss: Loss | None) -> float:
    """Return the mean loss of float32 logits (rows, outputs), in the unit that training minimizes."""
    raw = torch.from_numpy(logits)
    true = torch.from_numpy(labels).to(torch.long if problem_type == SINGLE else torch.float32)
    if loss is not None:
        return float(loss({"logits": raw}, true, num_items_in_batch=true.numel()))
    plain = cross_entropy if problem_type == SINGLE else binary_cross_entropy_with_logits
    return float(plain(raw, true))


def _weighted(problem_type: str, weights: torch.Tensor | None, smoothing: float) -> Loss:
    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"].float()
        weight = None if weights is None else weights.to(logits.device)
        if problem_type == SINGLE:
            # torch's mean divides by the weights of the batch: a rare label would count less in a small batch
            total = cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing, reduction="sum")
        else:
            target = labels * (1 - smoothing) + smoothing / 2
            total = binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="sum")
        return total / _items(labels, num_items_in_batch)

    return loss


def _squared_error(scale: LabelScale) -> Loss:
    """Return the mean squared error of standardized numbers; predicting the mean costs 1."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"].float().view(-1)
        targets = (labels.view(-1).double() - scale.mean) / scale.std
        return mse_loss(logits, targets.float(), reduction="sum") / _items(labels, num_items_in_batch)

    return loss


def _items(labels: torch.Tensor, num_items_in_batch: Any) -> Any:
    """Return the divisor of the summed loss: Trainer's count, or the labels of this batch."""
    if num_items_in_batch is None:
        return labels.numel()
    return num_items_in_batch.to(labels.device) if torch.is_tensor(num_items_in_batch) else num_items_in_batch


def _output_layer(model: nn.Module) -> nn.Linear:
    """Return the head's last linear layer, in PEFT's trained copy where there is one."""
    path_and_layer = output_layer(model, 1)
    if path_and_layer is None or path_and_layer[1].bias is None:
        raise ModelError(
            "This model's head has no output layer with a bias, so it cannot be trained for regression."
        )
    return path_and_layer[1]
