"""The working folder of a battery: a tiny model, a small data set, and runs that forked children train."""

import contextlib
import gc
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from small_data import write_small_data
from tiny import make_tiny_bert

from batteries.run_checks import TEXTS
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.export.archives import zip_of
from peft_core.export.embeddings import export_embeddings
from peft_core.inference.predictor import Predictor
from peft_core.merging.merge import merge
from peft_core.runs import Run
from peft_core.training.entry import train

EPOCHS = 2  # 20 steps with checkpoints at 5, 10 and 15: about a second of a processor


@dataclass(frozen=True)
class Workplace:
    """A folder with `model/`, `data/` and `runs/`, and a finished run in it."""

    folder: Path
    finished: Run

    @property
    def runs_dir(self) -> Path:
        return self.folder / "runs"

    def config(self, **changes: Any) -> TrainConfig:
        """Return settings with which the tiny model learns the small data in about a second."""
        return settings_in(self.folder, **changes)

    def create(self, **changes: Any) -> Run:
        """Create a scheduled run."""
        return runs.create(self.runs_dir, self.config(**changes))

    def copy(self, run: Run, name: str) -> Run:
        """Copy a run to another name, and replace an earlier copy."""
        shutil.rmtree(self.runs_dir / name, ignore_errors=True)
        return Run(shutil.copytree(run.folder, self.runs_dir / name))


def settings_in(folder: Path, **changes: Any) -> TrainConfig:
    """Return the settings of a workplace in a folder."""
    own = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "data"),
        "max_length": 64,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.03,
    }
    return TrainConfig.from_dict({**own, **changes})


@contextlib.contextmanager
def workplace() -> Iterator[Workplace]:
    """Create a workplace whose first run is trained, merged and exported in this process.

    That loads all lazy imports, so that forked children start fast. Torch uses one thread, because the
    threads of a pool do not exist in a forked child.
    """
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="battery-") as name:
        folder = Path(name)
        make_tiny_bert(folder / "model", with_head=False)
        write_small_data(folder / "data")
        run = runs.create(folder / "runs", settings_in(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # Trainer prints every loss
            train(run.folder)
        _use_all(run)
        gc.freeze()  # a child's collector would touch, and thus copy, all memory
        shutil.copytree(run.folder, folder / "finished")
        yield Workplace(folder, run)


def _use_all(run: Run) -> None:
    """Merge, export and predict with a copy of a run."""
    copy = Run(shutil.copytree(run.folder, run.folder.parent / "warm"))
    merge(copy.folder)
    export_embeddings(copy.folder)
    zip_of(copy, "adapter")
    Predictor(copy.folder).predict(TEXTS)
    shutil.rmtree(copy.folder)
