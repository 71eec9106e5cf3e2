"""Checkpoints that are whole or not there: staged, hashed, synced, renamed, and verified before use."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from peft_core.adapters import rank_allocator, trained_state

MANIFEST, STATE = "manifest.json", "trained.safetensors"
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


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there and have the bytes they were saved with, or None."""
    return next((path for path in list_checkpoints(folder) if _verified(path)), None)


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has behind it."""
    return int(checkpoint.name.split("-")[1])


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): _sha256(path) for path in sorted(files)}


def _verified(checkpoint: Path) -> bool:
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return STATE in expected and expected == hashes(checkpoint)
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
