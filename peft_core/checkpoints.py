"""Checkpoints that are whole or not there: staged, hashed, synced, renamed, and verified before use."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from peft_core.adapters import rank_allocator, trained_state
from peft_core.runs import whole_folder, write_json

MANIFEST, STATE = "manifest.json", "trained.safetensors"
_IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # as PEFT's RankAllocator names them


class EpochSampler(LengthGroupedSampler):
    """Texts of like length together, in an order that the seed and the epoch alone decide.

    Stock Trainer draws an epoch's order from what torch drew before it, which a continued run cannot repeat.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Trainer says which epoch comes next."""
        self.generator.manual_seed(self.seed + epoch)


class CheckpointingTrainer(Trainer):
    """Trainer whose checkpoints appear under `output_dir` only when every file of them is on disk.

    Stock Trainer writes in place: a process killed while it saves leaves a checkpoint that cannot be used.
    """

    _staging: Path | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(tokens) for tokens in rows["input_ids"][:]]
        return EpochSampler(self.args.train_batch_size, lengths, self.args.seed)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_trained(self.model, Path(output_dir or self.args.output_dir) / STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint) / STATE)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self._staging = folder / ".staging"
        try:
            with whole_folder(self._staging / name, folder / name) as staging:
                super()._save_checkpoint(model, trial)
                write_json(staging / MANIFEST, _hashes(staging))
        finally:
            self._staging = None
        for older in list_checkpoints(folder)[1:]:
            shutil.rmtree(older)


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


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): _sha256(path) for path in sorted(files)}


def _verified(checkpoint: Path) -> bool:
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return STATE in expected and expected == _hashes(checkpoint)
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
