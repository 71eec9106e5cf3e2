"""What the worker checks before a run is made."""

import time

import pytest

from peft_core import tasks
from peft_core.errors import DataError, HubError


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
