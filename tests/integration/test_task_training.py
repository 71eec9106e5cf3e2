"""Multi-label, regression and pair runs, from the loss to the saved model in stock transformers."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from processes import answer
from sklearn.utils.class_weight import compute_class_weight
from task_runs import TOPICS, labeled_splits, number_rows, train_on
from tiny import LABEL_WORDS, SUBJECTS, make_tiny_bert

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import ConfigError, DataError, ModelError
from peft_core.inference.classifier import Classifier
from peft_core.inference.metrics import task_metrics
from peft_core.inference.predictor import Predictor
from peft_core.merging.merge import merge
from peft_core.models.encoder import load_base
from peft_core.problem_types import MULTI, REGRESSION, SINGLE, decide
from peft_core.runs import Run
from peft_core.training.losses import LabelScale, balanced_weights, eval_loss, positive_weights, task_loss
from peft_core.training.results import measure

STOCK = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
torch.set_num_threads(1)
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.inference_mode():
    rows = [model(**tokenizer(*text, return_tensors="pt")).logits[0].tolist() for text in texts]
classify = pipeline("text-classification", folder)
found = [classify({"text": t[0], "text_pair": t[1]} if len(t) > 1 else t[0], top_k=None) for t in texts]
print(json.dumps({"rows": rows, "found": found, "task": model.config.problem_type}))
"""


def stock(run: Run, texts: list[list[str]]) -> dict[str, Any]:
    """Return logits and pipeline outputs of the merged model from a process with stock transformers only."""
    merge(run.folder)
    return answer(STOCK, str(run.merged), json.dumps(texts))


def test_multi_label_run_learns_and_stores_binary_labels(topics: Run) -> None:
    metrics, rows = topics.result(), pd.read_parquet(topics.evaluation)
    assert metrics["problem_type"] == MULTI
    assert metrics["micro_f1"] >= 0.75 > metrics["baseline"]["micro_f1"]
    low, high = metrics["micro_f1_interval"]
    assert low <= metrics["micro_f1"] <= high
    true, predicted = (np.stack(rows[name]).astype(int) for name in ("label", "predicted"))
    assert true.shape == predicted.shape == (60, 3)
    recomputed = task_metrics(MULTI, predicted, true)
    assert {name: metrics[name] for name in recomputed} == pytest.approx(recomputed)
    assert [row["label"] for row in metrics["per_label"]] == list(TOPICS)
    assert [row["support"] for row in metrics["per_label"]] == true.sum(0).tolist()


def test_multi_label_curve_has_its_metrics_and_one_test_point(topics: Run) -> None:
    metrics, test_metrics = topics.metrics(), topics.result()
    curve = [row for row in metrics if "eval_micro_f1" in row]
    assert curve[-1]["step"] == test_metrics["steps"]
    assert len(curve) >= 4
    assert not any("eval_accuracy" in row for row in metrics)
    (point,) = [row for row in metrics if "test_micro_f1" in row]
    assert (point["test_micro_f1"], point["test_loss"]) == (
        test_metrics["micro_f1"],
        test_metrics["eval_loss"],
    )


def test_multi_label_predict_returns_every_label_above_threshold(topics: Run) -> None:
    both, none = Predictor(topics.folder).predict(
        ["We had awful and rude and worst and good and nice and tasty.", "We had decent and fine."]
    )
    assert (both.labels, both.label) == (("food", "drink"), "food, drink")
    assert (none.labels, none.label) == ((), "no label")
    assert both.scores["food"] > 0.5 and both.scores["drink"] > 0.5 > both.scores["room"] > 0
    assert json.loads(json.dumps(both.to_dict()))["labels"] == ["food", "drink"]


def test_multi_label_merged_model_matches_stock_transformers(topics: Run) -> None:
    texts = pd.read_parquet(topics.evaluation)["text"].tolist()[:20]
    reference = stock(topics, [[text] for text in texts])
    own = Predictor(topics.folder, "merged").predict(texts)
    assert reference["task"] == MULTI
    assert np.array(reference["rows"]) == pytest.approx(
        np.array([prediction.logits for prediction in own]), abs=1e-5
    )
    for row, prediction in zip(reference["found"], own, strict=True):
        assert {part["label"]: part["score"] for part in row} == pytest.approx(prediction.scores, abs=1e-6)
        assert {part["label"] for part in row if part["score"] >= 0.5} == set(prediction.labels)


def test_multi_label_base_without_head_predicts_the_most_frequent_set(topics: Run) -> None:
    (prediction,) = Predictor(topics.folder, "base").predict(["anything"])
    metrics = topics.result()
    assert prediction.label == metrics["baseline"]["label"]
    assert set(prediction.labels) <= set(TOPICS)
    assert prediction.scores == metrics["train_label_shares"]
    assert "most frequent set" in prediction.note


def test_regression_run_learns_values_in_their_unit(stars: Run) -> None:
    metrics, rows = stars.result(), pd.read_parquet(stars.evaluation)
    assert metrics["spearman"] >= 0.85
    assert metrics["mae"] < 0.6 < metrics["baseline"]["mae"]
    assert metrics["baseline"]["value"] in (2.0, 3.0, 4.0)
    assert metrics["points"] == rows[["label", "predicted"]].to_numpy().tolist()
    assert metrics["train_label_range"] == [1, 5]
    errors = (rows["label"] - rows["predicted"]).to_numpy()
    assert metrics["mae"] == pytest.approx(np.abs(errors).mean())
    spread = LabelScale.from_labels(number_rows(240, 0)["label"][:]).std
    assert metrics["eval_loss"] == pytest.approx((errors**2).mean() / spread**2, rel=1e-4)
    curve = [row["eval_mae"] for row in stars.metrics() if "eval_mae" in row]
    assert curve[-1] < 0.6 < curve[0] < 4


def test_regression_predict_returns_a_value(stars: Run) -> None:
    worst, best = Predictor(stars.folder).predict(
        ["The food was terrible, awful and rude.", "The food was amazing, perfect and wonderful."]
    )
    assert worst.value < 2.2 and best.value > 3.8
    assert best.label == f"{best.value:.4g}"
    assert best.to_dict()["value"] == best.value and best.scores == {} and best.labels is None
    (base,) = Predictor(stars.folder, "base").predict(["anything"])
    assert base.value == stars.result()["baseline"]["value"]
    assert "median" in base.note


def test_regression_merged_model_matches_stock_transformers(stars: Run) -> None:
    texts = pd.read_parquet(stars.evaluation)["text"].tolist()[:20]
    reference = stock(stars, [[text] for text in texts])
    values = [prediction.value for prediction in Predictor(stars.folder, "merged").predict(texts)]
    assert reference["task"] == REGRESSION
    assert [row[0] for row in reference["rows"]] == pytest.approx(values, abs=1e-5)
    assert [row[0]["score"] for row in reference["found"]] == pytest.approx(values, abs=1e-5)


def test_regression_is_invariant_to_unit_and_offset(fit: Callable[..., Run], stars: Run) -> None:
    run = fit(labeled_splits(number_rows, (), REGRESSION, unit=1000.0, offset=-50_000.0))
    far, near = run.result(), stars.result()
    assert far["spearman"] == pytest.approx(near["spearman"], abs=0.03)
    assert far["mae"] == pytest.approx(1000 * near["mae"], rel=0.2)
    assert far["eval_loss"] == pytest.approx(near["eval_loss"], rel=0.2)


def test_regression_run_resumed_matches_uninterrupted_run(
    stars: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any) -> None:
        raise RuntimeError("the power went")

    data, run = labeled_splits(number_rows, (), REGRESSION), runs.create(tmp_path / "runs", stars.config())
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(LabelScale, "fold_into", cut_off)
        train_on(data, run)
    train_on(data, run)
    resumed, uninterrupted = run.result(), stars.result()
    assert resumed["resumed_from"] > 0
    assert resumed["mae"] == pytest.approx(uninterrupted["mae"], rel=0.2)
    assert [name for row in run.metrics() for name in row if name == "test_mae"] == ["test_mae"]


def test_regression_with_trained_head_starts_from_that_head(fit: Callable[..., Run], tmp_path: Path) -> None:
    """A learning rate near zero leaves the predictions unchanged."""
    trained_base = make_tiny_bert(tmp_path / "known", num_labels=1)
    run = fit(
        labeled_splits(number_rows, (), REGRESSION, unit=100.0),
        model_name_or_path=str(trained_base),
        learning_rate=1e-9,
        num_train_epochs=0.1,
    )
    texts = pd.read_parquet(run.evaluation)["text"].tolist()
    base, adapter = (Predictor(run.folder, variant).logits(texts) for variant in ("base", "adapter"))
    assert not run.result()["head_is_fresh"]
    assert base == pytest.approx(adapter, abs=1e-3)


def test_pair_run_predicts_from_both_texts(pairs: Run) -> None:
    assert pairs.result()["accuracy"] >= 0.95
    assert pairs.result()["text_pair"] is Classifier.read(pairs).text_pair is True
    predictor = Predictor(pairs.folder)
    predictions = predictor.predict(["How was the food?"] * 2, ["It was terrible.", "It was amazing."])
    assert [prediction.label for prediction in predictions] == ["bad", "good"]
    rows = pd.read_parquet(pairs.evaluation)
    predicted = predictor.logits(rows["text"].tolist(), rows["text_pair"].tolist()).argmax(-1)
    assert predicted.tolist() == rows["predicted"].tolist()
    assert predictor.note("bad food " * 20, "bad food " * 20) == "Only the first 64 tokens were read."


def test_pair_merged_model_matches_stock_transformers(pairs: Run) -> None:
    texts = [["How was the food?", "It was terrible."], ["How was the room?", "It was amazing."]]
    reference = stock(pairs, texts)
    own = Predictor(pairs.folder, "merged").predict(*map(list, zip(*texts, strict=True)))
    assert np.array(reference["rows"]) == pytest.approx(
        np.array([prediction.logits for prediction in own]), abs=1e-5
    )
    assert [max(row, key=lambda part: part["score"])["label"] for row in reference["found"]] == [
        "bad",
        "good",
    ]


@pytest.mark.parametrize("second", [None, [""], ["  "], [None], [3]])
def test_predict_pair_without_second_text_raises_data_error(second: Any, pairs: Run) -> None:
    with pytest.raises(DataError, match="reads pairs"):
        Predictor(pairs.folder).predict(["How was the food?"], second)


def test_predict_single_text_run_with_second_text_raises_data_error(stars: Run) -> None:
    with pytest.raises(DataError, match="reads one text"):
        Predictor(stars.folder).predict(["The food was fine."], ["Really."])


def test_run_without_problem_type_is_read_as_single_label(pairs: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / pairs.run_id)
    run.adapter.mkdir(parents=True)
    classifier = json.loads((pairs.adapter / "classifier.json").read_text())
    del classifier["problem_type"], classifier["text_pair"]
    (run.adapter / "classifier.json").write_text(json.dumps(classifier))
    (run.adapter / "adapter_model.safetensors").touch()
    (run.folder / "config.json").write_text("{}")
    assert (Classifier.read(run).problem_type, Classifier.read(run).text_pair) == (SINGLE, False)
    metrics = pairs.result().to_dict()
    old = {**metrics, "majority": metrics["baseline"]}
    del old["baseline"], old["problem_type"], old["per_label"], old["schema_version"]
    (run.folder / "result.json").write_text(json.dumps(old))
    assert run.result()["problem_type"] == SINGLE
    assert run.result()["baseline"]["label"] == metrics["baseline"]["label"]


def test_balanced_weights_match_scikit_learn() -> None:
    labels = np.array([0] * 70 + [1] * 25 + [3] * 5)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    assert balanced_weights(np.bincount(labels, minlength=5))[[0, 1, 3]] == pytest.approx(expected)
    assert positive_weights([[1, 0], [0, 0], [0, 0], [1, 0]]).tolist() == [1.0, 1.0]
    assert positive_weights([[1, 0], [0, 1], [0, 0], [0, 1]]).tolist() == [3.0, 1.0]


@pytest.mark.parametrize("task", [SINGLE, MULTI])
def test_weighted_loss_is_independent_of_batching(task: str) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(30, 3))).float()
    labels = rng.integers(3, size=30) if task == SINGLE else rng.integers(2, size=(30, 3)).astype(float)
    loss = task_loss(TrainConfig(class_weight="balanced"), task, labels, 3)
    true = torch.from_numpy(labels).to(torch.long if task == SINGLE else torch.float32)
    whole = loss({"logits": logits}, true, num_items_in_batch=torch.tensor(true.numel()))
    parts = sum(
        loss({"logits": logits[rows]}, true[rows], num_items_in_batch=true.numel())
        for rows in (slice(0, 7), slice(7, 30))
    )
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)
    if task == SINGLE:
        weights = torch.tensor(balanced_weights(np.bincount(labels, minlength=3))).float()
        assert float(whole) == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits, true, weight=weights)), rel=1e-5
        )
    plain = eval_loss(task, logits.numpy(), labels, None)
    assert eval_loss(task, logits.numpy(), labels, loss) == pytest.approx(float(whole)) != plain


def test_balanced_class_weight_raises_recall_of_rare_label(fit: Callable[..., Run]) -> None:
    def rare(count: int, seed: int) -> Dataset:
        """One review in ten is bad; half of the good ones use words of bad ones."""
        rng, rows = random.Random(seed), {"text": [], "label": []}
        for i in range(count):
            bad = i % 10 == 0
            words = rng.sample(LABEL_WORDS[2], 2) if rng.random() < 0.5 else rng.sample(LABEL_WORDS[4], 2)
            words = rng.sample(LABEL_WORDS[2], 2) if bad else words
            rows["text"].append(f"The {rng.choice(SUBJECTS)} was {words[0]} and {words[1]}.")
            rows["label"].append(int(not bad))
        return Dataset.from_dict(rows)

    recalls = []
    for weight in ("none", "balanced"):
        metrics = fit(labeled_splits(rare, ("bad", "good"), SINGLE), class_weight=weight).result()
        recalls.append(metrics["per_label"][0]["recall"])
    assert recalls[0] < 0.5 < recalls[1]


def test_class_weight_for_regression_raises_config_error(fit: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="have no classes"):
        fit(labeled_splits(number_rows, (), REGRESSION), class_weight="balanced")


def test_measure_with_nan_logits_raises_model_error(tiny_model: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_model), None, (), problem_type=REGRESSION)
    base.model.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite for 60 of 60 texts"):
        measure(tmp_path, base.model, base.tokenizer, labeled_splits(number_rows, (), REGRESSION), 64)


def test_regression_on_constant_labels_predicts_the_constant(fit: Callable[..., Run]) -> None:
    metrics = fit(
        labeled_splits(number_rows, (), REGRESSION, unit=0.0, offset=7.0), num_train_epochs=1
    ).result()
    assert metrics["mae"] < 0.5
    assert metrics["spearman"] == 0
    assert decide(np.array([[7.0]]), REGRESSION).tolist() == [7.0]
