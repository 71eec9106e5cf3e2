"""Detect a loss, gradient or weight that is not finite, and end training before it reaches a file."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from peft_core.errors import ModelError


def divergence_error(
    event: str, step: int, model: nn.Module, learning_rate: float, checkpoints: Sequence[int]
) -> ModelError:
    """Return the error of a run that diverged, with advice.

    Args:
        event: What happened, such as "the loss is nan".
        step: The step at which it happened.
        model: The model; if it has half-precision weights, the advice mentions them.
        learning_rate: The learning rate of the run.
        checkpoints: The steps of the remaining checkpoints.
    """
    advice = ", or with plain arithmetic (this run used half-precision weights)" if _is_half(model) else ""
    remaining = f" The checkpoint of step {max(checkpoints):,} is kept." if checkpoints else ""
    return ModelError(
        f"Training diverged at step {step:,}: {event}. Train again with a learning rate below "
        f"{learning_rate:g}{advice}.{remaining}"
    )


def first_not_finite(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first tensor that contains NaN or infinity, or None."""
    return next((name for name, tensor in named_tensors if not _is_finite(tensor)), None)


def named_values(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a checkpoint: the trained parameters and the state of the optimizer, if any."""
    yield from ((name, p.detach()) for name, p in model.named_parameters() if p.requires_grad)
    for state in optimizer.state.values() if optimizer else ():
        yield from ((f"optimizer.{key}", v) for key, v in state.items() if torch.is_tensor(v))


def not_finite(values: dict[str, Any]) -> list[str]:
    """Return the names of the numbers that are NaN or infinite."""
    return [name for name, x in values.items() if isinstance(x, float) and not math.isfinite(x)]


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _is_half(model: nn.Module) -> bool:
    return any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
