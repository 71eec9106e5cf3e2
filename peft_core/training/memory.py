"""Measure the memory of a training step on short texts, and fit the step into the free memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from peft_core.hardware import free_bytes
from peft_core.models.modules import config_of, encoder_layers
from peft_core.training.speedups import uncompiled

LENGTHS = (48, 96)  # tokens of the measured texts; long texts might not fit
SPARE = 2.0  # peak of a step over its saved activations: temporary tensors and libraries
SHARE = 0.8  # largest share of the free memory that a step may take

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class MemoryPlan:
    """How a training step fits into the free memory.

    Attributes:
        needed: Bytes for the whole batch at once.
        free: Free bytes.
        parts: Parts into which each batch is split; their gradients are accumulated.
        checkpointing: Whether the layers run again in the backward pass instead of saving their activations.
    """

    needed: int
    free: int
    parts: int = 1
    checkpointing: bool = False


def plan_memory(model: nn.Module, batch: Batch, *, may_split: bool = True) -> MemoryPlan:
    """Return the plan for a run whose most expensive batch is this one, with the memory that is free now.

    Parts cost almost nothing, so they come first. Checkpointing costs another forward pass, and is used if a
    single text does not fit, or if the batch may not be split and does not fit.
    """
    texts, tokens = batch["input_ids"].shape
    text_bytes = _bytes_per_text(model, batch, tokens)
    free = free_bytes(next(model.parameters()).device)
    max_texts = max(1, int(SHARE * free / (SPARE * text_bytes)))  # at once
    needed = int(SPARE * text_bytes * texts)
    if max_texts >= texts:
        return MemoryPlan(needed, free)
    if may_split and max_texts > 1:
        return MemoryPlan(needed, free, _parts(texts, max_texts))
    layers = len(encoder_layers(model) or (0,))
    inputs_bytes = layers * tokens * config_of(model).hidden_size * 4  # of all layers, in float32
    max_texts = max(1, int(SHARE * free / (SPARE * (text_bytes / layers + inputs_bytes))))
    return MemoryPlan(needed, free, _parts(texts, max_texts) if may_split else 1, checkpointing=True)


def saved_bytes(model: nn.Module, batch: Batch) -> int:
    """Return the bytes that a training step of this batch saves for its backward pass, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}  # size by address

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    recording = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.random.fork_rng(), uncompiled(), recording:
        loss = model(**batch).loss  # while it lives, no two saved tensors share an address
    del loss
    return sum(saved.values())


@contextmanager
def checkpointed(model: PreTrainedModel | PeftModel, enabled: bool) -> Iterator[bool]:
    """Use gradient checkpointing in this block if it is enabled and supported; yield whether it is used."""
    is_used = enabled and getattr(model, "supports_gradient_checkpointing", False)
    if is_used:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield is_used
    finally:
        if is_used:
            model.activation_checkpointing_disable()


def _bytes_per_text(model: nn.Module, batch: Batch, tokens: int) -> float:
    """Return the saved bytes of a text: a part linear in its tokens, and attention's with their square."""
    lengths = [length for length in LENGTHS if length < tokens] or [tokens]
    token_bytes = [saved_bytes(model, _first(batch, length)) / length for length in lengths]
    if len(token_bytes) == 1:
        return token_bytes[0] * tokens * (tokens / lengths[0])  # at most the square of the length
    (short, long), (less, more) = lengths, token_bytes
    square = max(0.0, (more - less) / (long - short))
    return (less + square * (tokens - short)) * tokens


def _first(batch: Batch, tokens: int) -> Batch:
    """Return the first text of a batch, truncated to `tokens` tokens."""
    return {
        name: tensor[:1] if tensor.dim() == 1 or name == "labels" else tensor[:1, :tokens]
        for name, tensor in batch.items()
    }


def _parts(texts: int, max_texts: int) -> int:
    """Return the smallest power of two of parts with at most `max_texts` texts each."""
    parts = 1
    while -(-texts // parts) > max_texts:
        parts *= 2
    return parts
