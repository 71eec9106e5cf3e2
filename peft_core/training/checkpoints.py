"""What training changes, saved to a checkpoint and put back: the trained weights and the ranks of AdaLoRA."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from peft_core.adapters import rank_allocator, trained_state

_IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # as PEFT's RankAllocator names them


def save_trained(model: nn.Module, path: Path) -> None:
    """What training changes, by the model's own names: all that an adapter holds, and what PEFT leaves out of
    one, as the network behind P-tuning's vectors and the importances and ranks of AdaLoRA."""
    state, ranks = trained_state(model), None
    allocator = rank_allocator(model)
    if allocator:
        ranks = allocator.peft_config.rank_pattern
        for kind in _IMPORTANCES:
            state |= {f"{kind}:{name}": value for name, value in getattr(allocator, kind).items()}
    save_file(state, path, metadata={"format": "pt", "rank_pattern": json.dumps(ranks)})


def load_trained(model: nn.Module, path: Path) -> None:
    """Put what `save_trained` saved into a model that was built from the same settings."""
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
            held = {name: value for name, value in state.items() if name.startswith(f"{kind}:")}
            setattr(allocator, kind, {name.partition(":")[2]: value for name, value in held.items()})
