"""How much memory a training step will take, measured on short texts, and what is done where it is short."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from peft_core.machine import free_bytes
from peft_core.modules import encoder_layers
from peft_core.training.speedups import uncompiled

LENGTHS = (48, 96)  # tokens of the texts that are measured; long ones might not fit
SPARE = (
    2.0  # times what a step keeps for its backward pass: what else it holds for a moment, and the libraries
)
SHARE = 0.8  # of the free memory that a step may take

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class MemoryPlan:
    """`needed` bytes of the whole batch at once, of `free` ones; in so many `parts`, whose gradients add up
    (accumulation); `checkpointing`: the layers run again in the backward pass instead of being kept."""

    needed: int
    free: int
    parts: int = 1
    checkpointing: bool = False


def plan_memory(model: nn.Module, batch: Batch, *, may_split: bool = True) -> MemoryPlan:
    """How a run whose dearest batch is this one goes within the memory that is free now.

    Parts cost next to nothing, so they come first; checkpointing costs another forward pass, and comes where
    a single text is too much, or a batch that may not be split.
    """
    texts, tokens = batch["input_ids"].shape
    each = _bytes_a_text(model, batch, tokens)
    free = free_bytes(next(model.parameters()).device)
    most = max(1, int(SHARE * free / (SPARE * each)))  # texts at once
    needed = int(SPARE * each * texts)
    if most >= texts:
        return MemoryPlan(needed, free)
    if may_split and most > 1:
        return MemoryPlan(needed, free, _parts(texts, most))
    layers = len(encoder_layers(model) or (0,))
    kept = each / layers + layers * tokens * model.config.hidden_size * 4  # a layer, and the inputs of all
    most = max(1, int(SHARE * free / (SPARE * kept)))
    return MemoryPlan(needed, free, _parts(texts, most) if may_split else 1, checkpointing=True)


def saved_bytes(model: nn.Module, batch: Batch) -> int:
    """What a training step of this batch keeps for its backward pass, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept_aside = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.random.fork_rng(), uncompiled(), kept_aside:
        loss = model(**batch).loss  # while it lives, no two of what is kept share an address
    del loss
    return sum(kept.values())


@contextmanager
def checkpointed(model: nn.Module, wanted: bool) -> Iterator[bool]:
    """The model whose layers run again in the backward pass if that is wanted and it can; whether it does."""
    can = wanted and getattr(model, "supports_gradient_checkpointing", False)
    if can:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield can
    finally:
        if can:
            model.activation_checkpointing_disable()


def _bytes_a_text(model: nn.Module, batch: Batch, tokens: int) -> float:
    """Of a text of so many tokens: a part that grows with them, and attention's, with their square."""
    lengths = [length for length in LENGTHS if length < tokens] or [tokens]
    found = [saved_bytes(model, _first(batch, length)) / length for length in lengths]
    if len(found) == 1:
        return found[0] * tokens * (tokens / lengths[0])  # a text a little longer: at most its square
    (short, long), (less, more) = lengths, found
    square = max(0.0, (more - less) / (long - short))
    return (less + square * (tokens - short)) * tokens


def _first(batch: Batch, tokens: int) -> Batch:
    """The first text of a batch, cut to so many tokens."""
    return {
        name: value[:1] if value.dim() == 1 or name == "labels" else value[:1, :tokens]
        for name, value in batch.items()
    }


def _parts(texts: int, most: int) -> int:
    """The smallest power of two that leaves at most so many texts in each."""
    parts = 1
    while -(-texts // parts) > most:
        parts *= 2
    return parts
