"""Inference optimization for many texts: used only if it is faster and keeps the answers."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from peft_core.inference import precision, tables
from peft_core.inference.precision import optimize_for_inference
from peft_core.inference.predictor import Predictor
from peft_core.inference.tables import Request, predict_file
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows


@pytest.fixture
def bfloat16_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bfloat16 count as faster, however small the model."""
    monkeypatch.setattr(precision, "is_bfloat16_faster", lambda device: True)
    monkeypatch.setattr(precision, "MIN_SPEEDUP", 0.0)


@pytest.mark.usefixtures("bfloat16_faster")
@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "electra", "mpnet", "albert"]
)
def test_bfloat16_of_family_keeps_logits_within_tolerance(
    family: str, family_runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "HALF_DIFFERENCE", 0.2)  # a random model gives all texts much the same
    run = family_runs[family]
    original, texts = Predictor(run.folder), load_evaluation_rows(run).texts
    before, weights = original.logits(texts), copy.deepcopy(original.model.state_dict())
    fast, form = optimize_for_inference(original, texts)
    assert (form["dtype"], form["merged"], form["rows"]) == ("bfloat16", True, len(texts))
    assert next(fast.model.base_model.parameters()).dtype == torch.bfloat16
    difference = np.abs(fast.logits(texts) - before).max()
    assert 0 < difference <= 0.2 * before.std()
    assert difference == pytest.approx(form["max_logit_diff"], abs=1e-6)
    assert np.array_equal(original.logits(texts), before), "the given one answers as before"
    assert all(torch.equal(weights[name], tensor) for name, tensor in original.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "replacement"),
    [("MIN_SPEEDUP", 1e9), ("HALF_DIFFERENCE", 0.0), ("is_bfloat16_faster", lambda device: False)],
)
def test_optimize_without_gain_or_with_other_logits_stays_in_float32(
    name: str, replacement: object, bfloat16_faster: None, monkeypatch: pytest.MonkeyPatch, finished_run: Run
) -> None:
    monkeypatch.setattr(precision, name, replacement)
    original, texts = Predictor(finished_run.folder), load_evaluation_rows(finished_run).texts
    fast, form = optimize_for_inference(original, texts)
    assert form == {"merged": True, "dtype": "float32"}
    assert np.abs(fast.logits(texts) - original.logits(texts)).max() <= 1e-5
    assert not hasattr(fast.model, "peft_config") and hasattr(original.model, "peft_config")


@pytest.mark.usefixtures("bfloat16_faster")
def test_optimize_of_prompt_quantized_or_probe_model_changes_nothing(
    train_here: Callable[..., Run],
) -> None:
    prompt = train_here(method="prompt_tuning", num_train_epochs=0.2)
    texts = load_evaluation_rows(prompt).texts
    assert optimize_for_inference(Predictor(prompt.folder), texts)[1]["merged"] is False
    rounded = Predictor(train_here(load_in_bits=8, num_train_epochs=0.2).folder)
    assert optimize_for_inference(rounded, texts) == (rounded, {"merged": False, "dtype": "float32"})
    probe = Predictor(prompt.folder, "base")
    assert probe.fallback_note and optimize_for_inference(probe, texts) == (
        probe,
        {"merged": False, "dtype": "float32"},
    )


@pytest.mark.usefixtures("bfloat16_faster")
def test_bfloat16_of_regression_and_multi_label_keeps_logits(topics: Run, stars: Run) -> None:
    for run in (topics, stars):
        original, texts = Predictor(run.folder), load_evaluation_rows(run).texts
        fast, form = optimize_for_inference(original, texts)
        assert form["dtype"] == "bfloat16"
        assert (
            np.abs(fast.logits(texts) - original.logits(texts)).max() <= 0.05 * original.logits(texts).std()
        )


@pytest.mark.usefixtures("bfloat16_faster")
def test_predict_file_of_many_rows_uses_bfloat16_unless_exact(
    own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MIN_ROWS", 40)
    texts = load_evaluation_rows(own_run).texts
    path = tmp_path / "many.csv"
    pd.DataFrame({"review": [*texts, "", *texts]}).to_csv(path, index=False)
    predictor = Predictor(own_run.folder)
    half = predict_file(predictor, Request(path, "review"))
    assert half["form"]["dtype"] == "bfloat16" and half["form"]["rows"] == 64
    exact = predict_file(predictor, Request(path, "review", exact=True))
    assert exact["form"] is None
    half_table, exact_table = (pd.read_csv(report["path"]) for report in (half, exact))
    columns = ["probability_bad", "probability_good"]
    assert 0 < (half_table[columns] - exact_table[columns]).abs().max().max() < 0.05
    assert predict_file(predictor, Request(_short(tmp_path, texts), "review"))["form"] is None


def _short(folder: Path, texts: list[str]) -> Path:
    path = folder / "few.csv"
    pd.DataFrame({"review": texts[:39]}).to_csv(path, index=False)
    return path
