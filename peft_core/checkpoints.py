"""Checkpoints that are whole or not there: staged, hashed, synced, renamed, and verified before use."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from peft_core.runs import whole_folder, write_json

MANIFEST = "manifest.json"


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
        """The model or its adapter alone: no look-up on the Hub, no tokenizer, no pickled arguments."""
        folder = output_dir or self.args.output_dir
        without_lookup = {"save_embedding_layers": False} if isinstance(self.model, PeftModel) else {}
        self.model.save_pretrained(folder, state_dict=state_dict, **without_lookup)

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
        return expected == _hashes(checkpoint)
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
