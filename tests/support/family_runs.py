"""Merged LoRA runs, one per encoder family, as a fixture of conftest.py."""

from pathlib import Path

import pytest
from matrix import FAMILIES, settings_of
from tiny import make_tiny

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.merging.merge import merge
from peft_core.runs import Run
from peft_core.training.entry import train


@pytest.fixture(scope="session")
def family_runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Merged runs by family, trained for one epoch in this process; read-only."""
    return {family: _run(family, tiny_data, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def _run(family: str, data: Path, folder: Path) -> Run:
    settings = settings_of({"method": "lora", "num_train_epochs": 1}, family)
    names = {"model_name_or_path": str(make_tiny(folder / "model", family)), "dataset_name": str(data)}
    run = runs.create(folder, TrainConfig.from_dict({**settings, **names}))
    train(run.folder)
    merge(run.folder)
    return run
