"""A loss, gradient or weight that is not finite ends training at that step, before it reaches a file."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from peft_core.errors import ModelError


def divergence_error(
    what: str, step: int, model: nn.Module, learning_rate: float, checkpoints: Sequence[int]
) -> ModelError:
    """The error of a run in which `what` (such as "the loss is nan") happened at a step, with advice.

    `checkpoints` are the steps of those that are left.
    """
    plain = ", or with plain arithmetic (this run computed in half-width numbers)" if _is_half(model) else ""
    left = f" The checkpoint of step {max(checkpoints):,} is kept." if checkpoints else ""
    return ModelError(
        f"Training diverged at step {step:,}: {what}. Train again with a learning rate below "
        f"{learning_rate:g}{plain}.{left}"
    )


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None."""
    return next((name for name, tensor in named if not _is_finite(tensor)), None)


def named_values(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that a checkpoint holds: what is trained, and what the optimizer, if any, keeps of it."""
    yield from ((name, p.detach()) for name, p in model.named_parameters() if p.requires_grad)
    for kept in optimizer.state.values() if optimizer else ():
        yield from ((f"optimizer.{key}", v) for key, v in kept.items() if torch.is_tensor(v))


def not_finite(values: dict[str, Any]) -> list[str]:
    """The names of numbers that are NaN or infinite."""
    return [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _is_half(model: nn.Module) -> bool:
    return any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
