"""What training minimises where transformers' own loss is not enough: class weights, numbers in any unit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from peft_core.config import TrainConfig
from peft_core.errors import ConfigError, ModelError
from peft_core.kept_step import metric_for_best
from peft_core.modules import output_layer
from peft_core.problems import REGRESSION, SINGLE

Loss = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class LabelScale:
    """The mean and the standard deviation of the training rows' numbers.

    A fresh head starts near 0 and moves by about the learning rate a step, so it would never reach prices in
    thousands. So it learns (label - mean) / std, and `fold_into` gives the trained model the real unit.
    """

    mean: float
    std: float

    @classmethod
    def of(cls, labels: Sequence[float]) -> "LabelScale":
        values = np.asarray(labels, dtype=np.float64)
        return cls(float(values.mean()), float(values.std()) or 1.0)

    def real(self, standardised: np.ndarray) -> np.ndarray:
        """Numbers in the labels' own unit."""
        return standardised * self.std + self.mean

    def fold_into(self, model: nn.Module) -> None:
        """Have a model that learned standardised numbers return real ones, by its output layer alone."""
        layer = _output_layer(model)
        with torch.no_grad():
            layer.weight.mul_(self.std)
            layer.bias.mul_(self.std).add_(self.mean)

    def take_out_of(self, model: nn.Module) -> None:
        """Have a model that returns real numbers return standardised ones: the inverse of `fold_into`."""
        layer = _output_layer(model)
        with torch.no_grad():
            layer.weight.div_(self.std)
            layer.bias.sub_(self.mean).div_(self.std)


def balanced_weights(counts: Sequence[int]) -> np.ndarray:
    """n / (k * count) for each of k labels, as scikit-learn's `class_weight="balanced"`; their mean over the
    rows is 1, so that the loss keeps its size. A label without rows gets 0."""
    seen = np.asarray(counts, dtype=np.float64)
    used = seen > 0
    weights = np.zeros_like(seen)
    weights[used] = seen.sum() / (used.sum() * seen[used])
    return weights


def positive_weights(labels: Sequence[Sequence[float]]) -> np.ndarray:
    """Rows without a label for each row with it, as `pos_weight` takes it; 1 for a label without rows."""
    held = np.asarray(labels, dtype=np.float64)
    positive = held.sum(0)
    return np.where(positive > 0, (len(held) - positive) / np.maximum(positive, 1), 1.0)


def check_objective(config: TrainConfig, problem_type: str) -> None:
    """Raise ConfigError for what training cannot minimize, or choose the best step by, with such labels."""
    metric_for_best(config, problem_type)
    if problem_type == REGRESSION and config.class_weight != "none":
        raise ConfigError(
            "class_weight is 'balanced', but the labels are numbers, which have no classes; set it to none."
        )
    if problem_type == REGRESSION and config.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor is {config.label_smoothing_factor:g}, but the labels are numbers, of "
            "which no share can be spread over other labels; set it to 0."
        )


def task_loss(config: TrainConfig, problem_type: str, labels: Sequence, num_labels: int) -> Loss | None:
    """Trainer's `compute_loss_func`, from the training rows' labels; None where the model's own loss will do.

    It divides by `num_items_in_batch` (of labels, in all batches of a step), as transformers' losses do.

    `label_smoothing_factor` e: one label's target is 1 - e for the label and e / k more for each of the k
    labels (Szegedy et al. 2016, section 7; with class weights as torch's `cross_entropy` combines the two).
    Each of several labels is a question with two answers, so its targets are e / 2 and 1 - e / 2.
    """
    if problem_type == REGRESSION:
        return _squared_error(LabelScale.of(labels))
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
    """The mean loss of float32 logits (rows, outputs), in the unit in which training minimises it."""
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
            # a mean over the batch's own weights would make a rare label count less in a small batch
            total = cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing, reduction="sum")
        else:
            target = labels * (1 - smoothing) + smoothing / 2
            total = binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="sum")
        return total / _items(labels, num_items_in_batch)

    return loss


def _squared_error(scale: LabelScale) -> Loss:
    """Of standardised numbers: 1 is what predicting the mean costs."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"].float().view(-1)
        wanted = (labels.view(-1).double() - scale.mean) / scale.std
        return mse_loss(logits, wanted.float(), reduction="sum") / _items(labels, num_items_in_batch)

    return loss


def _items(labels: torch.Tensor, num_items_in_batch: Any) -> Any:
    if num_items_in_batch is None:
        return labels.numel()
    return num_items_in_batch.to(labels.device) if torch.is_tensor(num_items_in_batch) else num_items_in_batch


def _output_layer(model: nn.Module) -> nn.Linear:
    """The head's last linear layer, in PEFT's trained copy where there is one."""
    found = output_layer(model, 1)
    if found is None or found[1].bias is None:
        raise ModelError("This model's head has no output layer with a bias, so it cannot learn numbers.")
    return found[1]
