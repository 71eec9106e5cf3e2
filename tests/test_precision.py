"""The quicker form of a model for many texts: taken only where it gains and the answers stay."""

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
def gaining(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which bfloat16 pays, however small the model."""
    monkeypatch.setattr(precision, "is_bfloat16_faster", lambda device: True)
    monkeypatch.setattr(precision, "MIN_SPEEDUP", 0.0)


@pytest.mark.usefixtures("gaining")
@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "electra", "mpnet", "albert"]
)
def test_every_family_answers_the_same_in_half(
    family: str, family_runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "HALF_DIFFERENCE", 0.2)  # a random model gives all texts much the same
    run = family_runs[family]
    given, texts = Predictor(run.folder), load_evaluation_rows(run).texts
    before, weights = given.logits(texts), copy.deepcopy(given.model.state_dict())
    fast, form = optimize_for_inference(given, texts)
    assert (form["dtype"], form["merged"], form["rows"]) == ("bfloat16", True, len(texts))
    assert next(fast.model.base_model.parameters()).dtype == torch.bfloat16
    difference = np.abs(fast.logits(texts) - before).max()
    assert 0 < difference <= 0.2 * before.std()
    assert difference == pytest.approx(form["max_logit_diff"], abs=1e-6)
    assert np.array_equal(given.logits(texts), before), "the given one answers as before"
    assert all(torch.equal(weights[name], one) for name, one in given.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value"),
    [("MIN_SPEEDUP", 1e9), ("HALF_DIFFERENCE", 0.0), ("is_bfloat16_faster", lambda device: False)],
)
def test_it_stays_in_float32_where_nothing_is_gained_or_the_logits_move(
    name: str, value: object, gaining: None, monkeypatch: pytest.MonkeyPatch, finished_run: Run
) -> None:
    monkeypatch.setattr(precision, name, value)
    given, texts = Predictor(finished_run.folder), load_evaluation_rows(finished_run).texts
    fast, form = optimize_for_inference(given, texts)
    assert form == {"merged": True, "dtype": "float32"}
    assert np.abs(fast.logits(texts) - given.logits(texts)).max() <= 1e-5
    assert not hasattr(fast.model, "peft_config") and hasattr(given.model, "peft_config")


@pytest.mark.usefixtures("gaining")
def test_what_cannot_be_merged_or_is_quantised_or_stands_in_is_left_as_it_is(
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


@pytest.mark.usefixtures("gaining")
def test_numbers_and_several_labels_too(topics: Run, stars: Run) -> None:
    for run in (topics, stars):
        given, texts = Predictor(run.folder), load_evaluation_rows(run).texts
        fast, form = optimize_for_inference(given, texts)
        assert form["dtype"] == "bfloat16"
        assert np.abs(fast.logits(texts) - given.logits(texts)).max() <= 0.05 * given.logits(texts).std()


@pytest.mark.usefixtures("gaining")
def test_a_long_file_is_answered_by_it_unless_float32_is_asked_for(
    own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MIN_ROWS", 40)
    texts = load_evaluation_rows(own_run).texts
    path = tmp_path / "many.csv"
    pd.DataFrame({"review": [*texts, "", *texts]}).to_csv(path, index=False)
    given = Predictor(own_run.folder)
    done = predict_file(given, Request(path, "review"))
    assert done["form"]["dtype"] == "bfloat16" and done["form"]["rows"] == 64
    exact = predict_file(given, Request(path, "review", exact=True))
    assert exact["form"] is None
    one, other = (pd.read_csv(made["path"]) for made in (done, exact))
    columns = ["probability_bad", "probability_good"]
    assert 0 < (one[columns] - other[columns]).abs().max().max() < 0.05
    assert predict_file(given, Request(_short(tmp_path, texts), "review"))["form"] is None


def _short(folder: Path, texts: list[str]) -> Path:
    path = folder / "few.csv"
    pd.DataFrame({"review": texts[:39]}).to_csv(path, index=False)
    return path
