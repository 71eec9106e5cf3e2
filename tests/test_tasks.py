"""What the worker checks before a run is made."""

import time
from pathlib import Path

import pytest
from small_data import write_csv

from peft_core.errors import DataError, HubError
from peft_core.service import tasks


def test_the_default_passes() -> None:
    tasks.check({})


def test_a_hub_model_out_of_reach_is_refused_at_once_though_its_shape_is_known() -> None:
    start = time.monotonic()
    with pytest.raises(HubError, match="The Hub cannot be reached, so the base model 'google-bert"):
        tasks.check({"model_name_or_path": "google-bert/bert-base-uncased"})
    assert time.monotonic() - start < 10


def test_rows_that_are_at_hand_are_checked_too() -> None:
    with pytest.raises(DataError, match="max_eval_samples"):
        tasks.check({"max_eval_samples": 1})


def test_a_combination_that_cannot_be_counted_says_why_and_leaves_the_others() -> None:
    good, bad = tasks.count_all([{}, {"target_modules": ["nothing"]}])
    assert good["trainable"] == 74_498
    assert "matches nothing" in bad["error"]


def test_presets_are_counted_and_inspected_once_and_files_each_time(tmp_path: Path) -> None:
    """A hundred visitors look at the same settings; a file may have changed since."""
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
