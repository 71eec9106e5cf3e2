"""A merged LoRA run of each family of encoders, as a fixture of conftest.py."""

from pathlib import Path

import pytest
from matrix import FAMILIES, settings_of
from tiny import make_tiny

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.merge import merge
from peft_core.runs import Run
from peft_core.train import train


@pytest.fixture(scope="session", params=FAMILIES)
def family_run(
    request: pytest.FixtureRequest, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Trained for one epoch in this process, and merged; to be read only."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = settings_of({"method": "lora", "num_train_epochs": 1}, request.param)
    names = {
        "model_name_or_path": str(make_tiny(folder / "model", request.param)),
        "dataset_name": str(tiny_data),
    }
    run = runs.create(folder, TrainConfig.from_dict({**settings, **names}))
    train(run.folder)
    merge(run.folder)
    return run
