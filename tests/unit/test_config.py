"""Tests of settings: defaults, bounds and error messages."""

import json
from typing import Any

import pytest

from peft_core.config import SETTINGS, TrainConfig
from peft_core.errors import ConfigError
from peft_core.service.limits import Limits


def test_default_config_round_trips_through_json() -> None:
    config = TrainConfig()
    assert TrainConfig.from_dict(json.loads(config.to_json())) == config
    assert TrainConfig.from_dict({}) == config


def test_settings_have_help_and_unique_labels() -> None:
    assert set(SETTINGS) == set(TrainConfig().to_dict())
    for name, setting in SETTINGS.items():
        assert setting.label, name
        assert setting.help.endswith("."), name
    labels = [setting.label for setting in SETTINGS.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"r": 8.0}, {"r": 8}),
        ({"learning_rate": 1}, {"learning_rate": 1.0}),
        ({"target_modules": "query, value,"}, {"target_modules": ("query", "value")}),
        ({"target_modules": ["key", "key"]}, {"target_modules": ("key",)}),
        ({"revision": ""}, {"revision": None}),
        ({"num_labels": None}, {"num_labels": None}),
        ({"model_name_or_path": "  someone/model "}, {"model_name_or_path": "someone/model"}),
    ],
)
def test_from_dict_restores_types_lost_in_json_or_form(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = TrainConfig.from_dict(changes)
    for name, value in expected.items():
        setting = getattr(config, name)
        assert setting == value
        assert type(setting) is type(value)


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("learning_rat", "learning_rate"),
        ("rank", "r"),
        ("epochs", "num_train_epochs"),
        ("batch_size", "per_device_train_batch_size"),
        ("model_name", "model_name_or_path"),
        ("MAX_LENGTH", "max_length"),
    ],
)
def test_unknown_setting_error_names_nearest_setting(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_dict({key: 1})
    assert repr(key) in str(error.value)
    assert repr(nearest) in str(error.value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("r", 0),
        ("r", -1),
        ("r", 1.5),
        ("r", "8"),
        ("r", True),
        ("r", None),
        pytest.param("r", 10**400, id="r-huge"),
        ("lora_alpha", 0),
        ("lora_dropout", 1.0),
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("num_train_epochs", 0),
        ("per_device_train_batch_size", 0),
        ("max_length", 3),
        ("max_length", 8193),
        ("max_train_samples", 0),
        ("max_eval_samples", 0),
        ("num_labels", 1),
        ("seed", -1),
        ("seed", 2**32),
        ("method", "magic"),
        ("lr_scheduler_type", "steep"),
        ("target_modules", []),
        ("target_modules", [1]),
        ("target_modules", 3),
        ("model_name_or_path", " "),
        ("model_name_or_path", None),
        ("dataset_name", ["a"]),
    ],
)
def test_setting_with_invalid_value_raises_one_sentence(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_dict({name: value})
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)


def test_from_dict_of_a_list_raises() -> None:
    with pytest.raises(ConfigError, match="list"):
        TrainConfig.from_dict(["r", 8])


def test_public_limits_allow_default_run_and_are_described() -> None:
    limits = Limits()
    limits.check(TrainConfig())
    for number in ("4,000", "1,000", "256", "2,000"):
        assert number in limits.describe()


def test_public_limits_refuse_too_long_forecast() -> None:
    limits = Limits()
    for seconds in (None, 0.0, limits.max_seconds):
        limits.check_seconds(seconds)
    with pytest.raises(
        ConfigError, match="forecast to take 2,160 minutes; this public demo limits a run to 5"
    ):
        limits.check_seconds(36 * 3600.0)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"max_train_samples": 4001}, "max_train_samples is 4,001"),
        ({"max_eval_samples": 1001}, "max_eval_samples is 1,001"),
        ({"max_length": 257}, "max_length is 257"),
        ({"num_train_epochs": 100}, "18,800 steps"),
        ({"per_device_train_batch_size": 1}, "3,000 steps"),
        (
            {"per_device_train_batch_size": 1024, "num_train_epochs": 100},
            "per_device_train_batch_size is 1,024",
        ),
    ],
)
def test_public_limits_refuse_larger_settings(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Limits().check(TrainConfig.from_dict(settings))
