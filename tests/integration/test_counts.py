"""Tests of parameter counts: published numbers, their parts, and the file size of a real run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from peft_core import counts
from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.counts import count_parameters, describe_model, forecast_seconds, safetensors_size
from peft_core.errors import DataError, ModelError, PeftCoreError
from peft_core.models.presets import RECIPES
from peft_core.runs import Run

NLPTOWN = "nlptown/bert-base-multilingual-uncased-sentiment"
NLPTOWN_CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": 105879,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "id2label": {str(i): f"{i + 1} stars" for i in range(5)},
}


def count(**settings: Any) -> Any:
    return count_parameters(TrainConfig.from_dict(settings))


@pytest.mark.parametrize(
    "name, labels, r, modules, trainable, total, percent",
    [
        (NLPTOWN, 5, 8, "query,value", 298_757, 167_659_018, "0.1782"),
        (EMBEDDED_MODEL, 2, 8, "query,value", 74_498, 22_788_484, "0.3269"),
        ("google-bert/bert-base-cased", 2, 8, "query,key", 296_450, 108_608_260, "0.2730"),
        ("FacebookAI/roberta-base", 2, 8, "query,value", 887_042, 125_534_212, "0.7066"),
        ("FacebookAI/roberta-large", 2, 2, "query,value", 1_248_258, 356_610_052, "0.3500"),
        ("distilbert/distilbert-base-uncased", 2, 16, "q_lin,v_lin", 887_042, 67_842_052, "1.3075"),
        ("answerdotai/ModernBERT-base", 2, 8, "Wqkv", 542_210, 150_148_612, "0.3611"),
    ],
)
def test_count_parameters_matches_published_counts(
    name: str, labels: int, r: int, modules: str, trainable: int, total: int, percent: str
) -> None:
    counted = count(model_name_or_path=name, num_labels=labels, r=r, target_modules=modules)
    assert (counted.trainable, counted.total, f"{counted.percent:.4f}") == (trainable, total, percent)
    assert counted.adapter + counted.head == counted.trainable
    assert counted.head == counted.head_copy


def test_count_of_article_recipe_matches_article() -> None:
    counted = count(**RECIPES["The article (Hub)"])
    assert (counted.trainable, counted.total) == (298_757, 167_659_018)
    assert (counted.adapter, counted.head) == (294_912, 3_845)


def test_count_of_folder_with_only_config_adds_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NLPTOWN_CONFIG), encoding="utf-8")
    counted = count(model_name_or_path=str(tmp_path), num_labels=5)
    assert (counted.trainable, counted.total) == (298_757, 167_659_018)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_count_of_roberta_adapter_matches_paper() -> None:
    counted = count(model_name_or_path="FacebookAI/roberta-base")
    assert (counted.adapter, counted.head) == (294_912, 592_130)


def test_count_of_baselines_has_no_adapter() -> None:
    lora, head, full = (count(method=method) for method in ("lora", "head_only", "full"))
    assert (head.trainable, head.adapter, head.head, head.head_copy) == (770, 0, 770, 0)
    assert full.trainable == full.total == head.total == 22_713_986
    assert lora.total == full.total + lora.adapter + lora.head_copy


def test_count_with_doubled_rank_doubles_adapter() -> None:
    assert count(r=16).adapter == 2 * count(r=8).adapter


def test_count_grows_with_target_modules() -> None:
    every = [choice["name"] for choice in describe_model(EMBEDDED_MODEL)["modules"][:-1]]
    sizes = [count(target_modules=every[: n + 1]).adapter for n in range(len(every))]
    assert sizes == sorted(set(sizes))


def test_recorded_file_size_matches_adapter_file(finished_run: Run) -> None:
    report = finished_run.result()
    size = (finished_run.adapter / "adapter_model.safetensors").stat().st_size
    counted = {key: number for key, number in report["parameters"].items() if key != "schema_version"}
    assert counted == count_parameters(finished_run.config()).to_dict()
    assert report["parameters"]["file_bytes"] == size


def test_safetensors_size_matches_written_file(tmp_path: Path) -> None:
    shapes = {"a": (3, 5), "layer.0.long.name": (7,), "scalar": ()}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "file", metadata={"format": "pt"})
    assert safetensors_size(shapes) == (tmp_path / "file").stat().st_size


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"target_modules": ["q_proj"]}, ModelError, "'q_proj'.*it has query, key, value"),
        ({"max_length": 513}, ModelError, "at most 512 tokens"),
        ({"model_name_or_path": "./nowhere"}, ModelError, "config.json"),
        ({"dataset_name": "./nowhere"}, DataError, "no folder"),
    ],
)
def test_count_with_invalid_settings_raises(
    settings: dict[str, Any], error: type[PeftCoreError], words: str
) -> None:
    with pytest.raises(error, match=words):
        count(**settings)


def test_count_takes_num_labels_from_data_by_default(tiny_data: Path) -> None:
    config = TrainConfig(dataset_name=str(tiny_data))
    assert count_parameters(config).head == 2 * 384 + 2
    assert count_parameters(replace(config, num_labels=7)).head == 7 * 384 + 7


def test_forecast_grows_with_rows_and_is_none_for_unknown_data(tmp_path: Path) -> None:
    short, long = (forecast_seconds(TrainConfig(max_train_samples=rows)) for rows in (100, 10_000))
    assert 0 < short < long
    assert forecast_seconds(TrainConfig(dataset_name=str(tmp_path))) is None


def test_forecast_counts_cached_frozen_layers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "matrix_rate", lambda dtype: 1e9)

    def seconds(**settings: Any) -> float:
        return forecast_seconds(TrainConfig.from_dict({"num_train_epochs": 4, **settings}))

    whole, half = seconds(), seconds(top_layers=3)
    assert half == pytest.approx(whole * (4 * 4 + 2) / (2 * 4 * 4), rel=0.02)  # 2 of 4 operations, once of 4
    assert seconds(top_layers=3, dropout=0.1) == pytest.approx(whole * (4 + 2) / (2 * 4), rel=0.02)
    assert seconds(method="head_only") < whole / 7
    assert seconds(method="full", top_layers=3) == seconds(method="full")  # ignores top_layers
