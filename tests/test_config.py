"""Settings: their defaults, their bounds, and the sentence for each wrong one."""

import json
from typing import Any

import pytest

from peft_core.config import SETTINGS, TrainConfig
from peft_core.errors import ConfigError
from peft_core.service.limits import Limits


def test_defaults_survive_json() -> None:
    config = TrainConfig()
    assert TrainConfig.from_dict(json.loads(config.to_json())) == config
    assert TrainConfig.from_dict({}) == config


def test_every_setting_has_words() -> None:
    assert set(SETTINGS) == set(TrainConfig().to_dict())
    for name, setting in SETTINGS.items():
        assert setting.label, name
        assert setting.help.endswith("."), name
    labels = [setting.label for setting in SETTINGS.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    "given, kept",
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
def test_what_json_or_a_form_loses_is_given_back(given: dict[str, Any], kept: dict[str, Any]) -> None:
    config = TrainConfig.from_dict(given)
    for name, value in kept.items():
        found = getattr(config, name)
        assert found == value
        assert type(found) is type(value)


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
def test_unknown_setting_names_the_nearest(key: str, nearest: str) -> None:
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
def test_wrong_value_gets_one_sentence_with_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_dict({name: value})
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)


def test_settings_must_be_an_object() -> None:
    with pytest.raises(ConfigError, match="list"):
        TrainConfig.from_dict(["r", 8])


def test_public_demo_allows_the_default_run_and_says_its_limits() -> None:
    limits = Limits()
    limits.check(TrainConfig())
    for number in ("4,000", "1,000", "256", "2,000"):
        assert number in limits.describe()


def test_public_demo_refuses_what_is_forecast_to_take_too_long() -> None:
    limits = Limits()
    for seconds in (None, 0.0, limits.max_seconds):
        limits.check_seconds(seconds)
    with pytest.raises(ConfigError, match="forecast to take 2,160 minutes; this public demo gives a run 5"):
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
def test_public_demo_refuses_more(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Limits().check(TrainConfig.from_dict(settings))
