"""Save and load what training changes: the trained weights, and AdaLoRA's ranks and importances."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from peft_core.methods.adapters import rank_allocator, trained_state

_IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # as PEFT's RankAllocator names them


def save_trained(model: nn.Module, path: Path) -> None:
    """Save everything that training changes, under the model's own parameter names.

    This includes what PEFT omits from an adapter: P-tuning's prompt encoder network and AdaLoRA's importances
    and ranks.
    """
    state, ranks = trained_state(model), None
    allocator = rank_allocator(model)
    if allocator:
        ranks = allocator.peft_config.rank_pattern
        for kind in _IMPORTANCES:
            state |= {f"{kind}:{name}": tensor for name, tensor in getattr(allocator, kind).items()}
    save_file(state, path, metadata={"format": "pt", "rank_pattern": json.dumps(ranks)})


def load_trained(model: nn.Module, path: Path) -> None:
    """Load what `save_trained` saved into a model with the same settings."""
    state = load_file(path, device=str(next(model.parameters()).device))
    with safe_open(path, framework="pt") as file:
        ranks = json.loads(file.metadata()["rank_pattern"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
    allocator = rank_allocator(model)
    if allocator:
        allocator.peft_config.rank_pattern = ranks
        for kind in _IMPORTANCES:
            saved = {name: tensor for name, tensor in state.items() if name.startswith(f"{kind}:")}
            setattr(allocator, kind, {name.partition(":")[2]: tensor for name, tensor in saved.items()})
