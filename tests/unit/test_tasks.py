"""Tasks of the worker: checks before a run is created, counts and inspections."""

import time
from pathlib import Path

import pytest
from small_data import write_csv

from peft_core.errors import DataError, HubError
from peft_core.service import tasks


def test_check_accepts_default_settings() -> None:
    tasks.check_trainable({})


def test_check_of_unreachable_hub_model_raises_hub_error_quickly() -> None:
    start = time.monotonic()
    with pytest.raises(HubError, match="The Hub cannot be reached, so the base model 'google-bert"):
        tasks.check_trainable({"model_name_or_path": "google-bert/bert-base-uncased"})
    assert time.monotonic() - start < 10


def test_check_validates_local_rows() -> None:
    with pytest.raises(DataError, match="max_eval_samples"):
        tasks.check_trainable({"max_eval_samples": 1})


def test_count_all_reports_an_error_per_combination() -> None:
    good, bad = tasks.count_all([{}, {"target_modules": ["nothing"]}])
    assert good["trainable"] == 74_498
    assert "matches nothing" in bad["error"]


def test_count_and_inspect_cache_presets_but_not_files(tmp_path: Path) -> None:
    """Many visitors ask for the same presets; a file may change between two requests."""
    tasks._count_preset.cache_clear()
    tasks._inspect_embedded.cache_clear()
    assert tasks.count({"r": 4}) == tasks.count({"r": 4}) != tasks.count({"r": 8})
    assert tasks._count_preset.cache_info()[:2] == (1, 2)
    assert tasks.inspect({}) == tasks.inspect({})
    assert tasks._inspect_embedded.cache_info()[:2] == (1, 1)
    own = {"dataset_name": str(tmp_path / "a.csv")}
    write_csv(tmp_path / "a.csv", [("good", "yes"), ("bad", "no")] * 20)
    assert tasks.inspect(own)["labels"]["different"] == 2
    write_csv(tmp_path / "a.csv", [("good", "yes"), ("bad", "no"), ("so", "so")] * 20)
    assert tasks.inspect(own)["labels"]["different"] == 3
