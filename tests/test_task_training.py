"""Runs of several labels, of numbers and of pairs, from the loss to stock transformers on what was saved."""

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
from task_runs import TOPICS, labelled, number_rows, train_on
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
    """Logits and pipeline answers of the merged model in a process that knows transformers alone."""
    merge(run.folder)
    return answer(STOCK, str(run.merged), json.dumps(texts))


def test_several_labels_are_learned_and_kept_as_0_and_1(topics: Run) -> None:
    result, rows = topics.result(), pd.read_parquet(topics.evaluation)
    assert result["problem_type"] == MULTI
    assert result["micro_f1"] >= 0.75 > result["baseline"]["micro_f1"]
    low, high = result["micro_f1_interval"]
    assert low <= result["micro_f1"] <= high
    true, predicted = (np.stack(rows[name]).astype(int) for name in ("label", "predicted"))
    assert true.shape == predicted.shape == (60, 3)
    again = task_metrics(MULTI, predicted, true)
    assert {name: result[name] for name in again} == pytest.approx(again)
    assert [row["label"] for row in result["per_label"]] == list(TOPICS)
    assert [row["support"] for row in result["per_label"]] == true.sum(0).tolist()


def test_the_curve_is_of_the_tasks_own_metrics_and_the_test_rows_are_a_point_apart(topics: Run) -> None:
    metrics, result = topics.metrics(), topics.result()
    curve = [row for row in metrics if "eval_micro_f1" in row]
    assert curve[-1]["step"] == result["steps"]
    assert len(curve) >= 4
    assert not any("eval_accuracy" in row for row in metrics)
    (point,) = [row for row in metrics if "test_micro_f1" in row]
    assert (point["test_micro_f1"], point["test_loss"]) == (result["micro_f1"], result["eval_loss"])


def test_several_labels_of_one_text(topics: Run) -> None:
    both, none = Predictor(topics.folder).predict(
        ["We had awful and rude and worst and good and nice and tasty.", "We had decent and fine."]
    )
    assert (both.labels, both.label) == (("food", "drink"), "food, drink")
    assert (none.labels, none.label) == ((), "no label")
    assert both.scores["food"] > 0.5 and both.scores["drink"] > 0.5 > both.scores["room"] > 0
    assert json.loads(json.dumps(both.to_dict()))["labels"] == ["food", "drink"]


def test_stock_transformers_gives_the_same_labels(topics: Run) -> None:
    texts = pd.read_parquet(topics.evaluation)["text"].tolist()[:20]
    found = stock(topics, [[text] for text in texts])
    own = Predictor(topics.folder, "merged").predict(texts)
    assert found["task"] == MULTI
    assert np.array(found["rows"]) == pytest.approx(np.array([one.logits for one in own]), abs=1e-5)
    for row, one in zip(found["found"], own, strict=True):
        assert {part["label"]: part["score"] for part in row} == pytest.approx(one.scores, abs=1e-6)
        assert {part["label"] for part in row if part["score"] >= 0.5} == set(one.labels)


def test_a_base_without_a_head_shows_the_most_frequent_set(topics: Run) -> None:
    (found,) = Predictor(topics.folder, "base").predict(["anything"])
    result = topics.result()
    assert found.label == result["baseline"]["label"]
    assert set(found.labels) <= set(TOPICS)
    assert found.scores == result["train_label_shares"]
    assert "most frequent set" in found.note


def test_numbers_are_learned_in_their_own_unit(stars: Run) -> None:
    result, rows = stars.result(), pd.read_parquet(stars.evaluation)
    assert result["spearman"] >= 0.85
    assert result["mae"] < 0.6 < result["baseline"]["mae"]
    assert result["baseline"]["value"] in (2.0, 3.0, 4.0)
    assert result["points"] == rows[["label", "predicted"]].to_numpy().tolist()
    assert result["train_label_range"] == [1, 5]
    errors = (rows["label"] - rows["predicted"]).to_numpy()
    assert result["mae"] == pytest.approx(np.abs(errors).mean())
    spread = LabelScale.from_labels(number_rows(240, 0)["label"][:]).std
    assert result["eval_loss"] == pytest.approx((errors**2).mean() / spread**2, rel=1e-4)
    curve = [row["eval_mae"] for row in stars.metrics() if "eval_mae" in row]
    assert curve[-1] < 0.6 < curve[0] < 4


def test_a_number_of_one_text(stars: Run) -> None:
    worst, best = Predictor(stars.folder).predict(
        ["The food was terrible, awful and rude.", "The food was amazing, perfect and wonderful."]
    )
    assert worst.value < 2.2 and best.value > 3.8
    assert best.label == f"{best.value:.4g}"
    assert best.to_dict()["value"] == best.value and best.scores == {} and best.labels is None
    (base,) = Predictor(stars.folder, "base").predict(["anything"])
    assert base.value == stars.result()["baseline"]["value"]
    assert "median" in base.note


def test_stock_transformers_gives_the_same_numbers(stars: Run) -> None:
    texts = pd.read_parquet(stars.evaluation)["text"].tolist()[:20]
    found = stock(stars, [[text] for text in texts])
    values = [one.value for one in Predictor(stars.folder, "merged").predict(texts)]
    assert found["task"] == REGRESSION
    assert [row[0] for row in found["rows"]] == pytest.approx(values, abs=1e-5)
    assert [row[0]["score"] for row in found["found"]] == pytest.approx(values, abs=1e-5)


def test_the_unit_and_the_offset_of_the_numbers_do_not_matter(fit: Callable[..., Run], stars: Run) -> None:
    run = fit(labelled(number_rows, (), REGRESSION, unit=1000.0, offset=-50_000.0))
    far, near = run.result(), stars.result()
    assert far["spearman"] == pytest.approx(near["spearman"], abs=0.03)
    assert far["mae"] == pytest.approx(1000 * near["mae"], rel=0.2)
    assert far["eval_loss"] == pytest.approx(near["eval_loss"], rel=0.2)


def test_a_run_of_numbers_that_continues_ends_as_if_it_had_not_stopped(
    stars: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any) -> None:
        raise RuntimeError("the power went")

    data, run = labelled(number_rows, (), REGRESSION), runs.create(tmp_path / "runs", stars.config())
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(LabelScale, "fold_into", cut_off)
        train_on(data, run)
    train_on(data, run)
    again, whole = run.result(), stars.result()
    assert again["resumed_from"] > 0
    assert again["mae"] == pytest.approx(whole["mae"], rel=0.2)
    assert [name for row in run.metrics() for name in row if name == "test_mae"] == ["test_mae"]


def test_a_head_that_knows_numbers_goes_on_from_what_it_knows(
    fit: Callable[..., Run], tmp_path: Path
) -> None:
    """A learning rate of almost nothing leaves its answers as they are."""
    known = make_tiny_bert(tmp_path / "known", num_labels=1)
    run = fit(
        labelled(number_rows, (), REGRESSION, unit=100.0),
        model_name_or_path=str(known),
        learning_rate=1e-9,
        num_train_epochs=0.1,
    )
    texts = pd.read_parquet(run.evaluation)["text"].tolist()
    base, adapter = (Predictor(run.folder, variant).logits(texts) for variant in ("base", "adapter"))
    assert not run.result()["head_is_fresh"]
    assert base == pytest.approx(adapter, abs=1e-3)


def test_pairs_are_read_as_pairs(pairs: Run) -> None:
    assert pairs.result()["accuracy"] >= 0.95
    assert pairs.result()["text_pair"] is Classifier.read(pairs).text_pair is True
    predictor = Predictor(pairs.folder)
    found = predictor.predict(["How was the food?"] * 2, ["It was terrible.", "It was amazing."])
    assert [one.label for one in found] == ["bad", "good"]
    rows = pd.read_parquet(pairs.evaluation)
    again = predictor.logits(rows["text"].tolist(), rows["text_pair"].tolist()).argmax(-1)
    assert again.tolist() == rows["predicted"].tolist()
    assert predictor.note("bad food " * 20, "bad food " * 20) == "Only the first 64 tokens were read."


def test_stock_transformers_reads_the_same_pairs(pairs: Run) -> None:
    texts = [["How was the food?", "It was terrible."], ["How was the room?", "It was amazing."]]
    found = stock(pairs, texts)
    own = Predictor(pairs.folder, "merged").predict(*map(list, zip(*texts, strict=True)))
    assert np.array(found["rows"]) == pytest.approx(np.array([one.logits for one in own]), abs=1e-5)
    assert [max(row, key=lambda part: part["score"])["label"] for row in found["found"]] == ["bad", "good"]


@pytest.mark.parametrize("second", [None, [""], ["  "], [None], [3]])
def test_a_pair_without_its_second_text_gets_one_sentence(second: Any, pairs: Run) -> None:
    with pytest.raises(DataError, match="reads pairs"):
        Predictor(pairs.folder).predict(["How was the food?"], second)


def test_a_second_text_for_a_run_of_single_texts_gets_one_sentence(stars: Run) -> None:
    with pytest.raises(DataError, match="reads one text"):
        Predictor(stars.folder).predict(["The food was fine."], ["Really."])


def test_runs_from_before_the_tasks_are_read_as_one_label(pairs: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / pairs.run_id)
    run.adapter.mkdir(parents=True)
    held = json.loads((pairs.adapter / "classifier.json").read_text())
    del held["problem_type"], held["text_pair"]
    (run.adapter / "classifier.json").write_text(json.dumps(held))
    (run.adapter / "adapter_model.safetensors").touch()
    (run.folder / "config.json").write_text("{}")
    assert (Classifier.read(run).problem_type, Classifier.read(run).text_pair) == (SINGLE, False)
    result = pairs.result().to_dict()
    old = {**result, "majority": result["baseline"]}
    del old["baseline"], old["problem_type"], old["per_label"], old["schema_version"]
    (run.folder / "result.json").write_text(json.dumps(old))
    assert run.result()["problem_type"] == SINGLE
    assert run.result()["baseline"]["label"] == result["baseline"]["label"]


def test_class_weights_are_those_of_scikit_learn() -> None:
    labels = np.array([0] * 70 + [1] * 25 + [3] * 5)
    wanted = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    assert balanced_weights(np.bincount(labels, minlength=5))[[0, 1, 3]] == pytest.approx(wanted)
    assert positive_weights([[1, 0], [0, 0], [0, 0], [1, 0]]).tolist() == [1.0, 1.0]
    assert positive_weights([[1, 0], [0, 1], [0, 0], [0, 1]]).tolist() == [3.0, 1.0]


@pytest.mark.parametrize("task", [SINGLE, MULTI])
def test_a_weighted_loss_is_the_same_however_its_rows_are_batched(task: str) -> None:
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


def test_class_weights_find_more_of_a_rare_label(fit: Callable[..., Run]) -> None:
    def rare(count: int, seed: int) -> Dataset:
        """One review in ten is bad, and half of these say it in words that good ones use as well."""
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
        result = fit(labelled(rare, ("bad", "good"), SINGLE), class_weight=weight).result()
        recalls.append(result["per_label"][0]["recall"])
    assert recalls[0] < 0.5 < recalls[1]


def test_class_weights_of_numbers_are_refused(fit: Callable[..., Run]) -> None:
    with pytest.raises(ConfigError, match="have no classes"):
        fit(labelled(number_rows, (), REGRESSION), class_weight="balanced")


def test_a_model_that_diverged_says_so(tiny_model: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_model), None, (), problem_type=REGRESSION)
    base.model.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite for 60 of 60 texts"):
        measure(tmp_path, base.model, base.tokenizer, labelled(number_rows, (), REGRESSION), 64)


def test_numbers_that_are_all_the_same_are_learned_as_such(fit: Callable[..., Run]) -> None:
    result = fit(labelled(number_rows, (), REGRESSION, unit=0.0, offset=7.0), num_train_epochs=1).result()
    assert result["mae"] < 0.5
    assert result["spearman"] == 0
    assert decide(np.array([[7.0]]), REGRESSION).tolist() == [7.0]
