"""Predictions of base, adapter and merged model; unusual texts; runs with lost files."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_of
from run_files import change_json
from tiny import make_tiny_bert, make_yelp_parquet

from peft_core import runs
from peft_core.data.labelled import truncate_text
from peft_core.errors import DataError, RunError
from peft_core.inference.classifier import Classifier
from peft_core.inference.predictor import Predictor, check_texts
from peft_core.runs import Run

BAD, GOOD = "The food was awful, really terrible.", "Wonderful, the best pizza, excellent."


def test_predict_returns_labels_scores_and_time(finished_run: Run) -> None:
    bad, good = Predictor(finished_run.folder).predict([BAD, GOOD])
    assert (bad.label, good.label) == ("bad", "good")
    for prediction in (bad, good):
        assert list(prediction.scores) == ["bad", "good"]
        assert sum(prediction.scores.values()) == pytest.approx(1)
        assert prediction.scores[prediction.label] == max(prediction.scores.values())
        assert prediction.ms > 0
    assert json.loads(json.dumps(good.to_dict()))["label"] == "good"


def test_adapter_and_merged_logits_agree(merged_run: Run) -> None:
    texts = pd.read_parquet(merged_run.evaluation).text.tolist()
    adapter, merged = (
        Predictor(merged_run.folder, variant).logits(texts) for variant in ("adapter", "merged")
    )
    assert adapter.shape == (40, 2)
    assert adapter.dtype == np.float32
    assert np.abs(adapter - merged).max() <= 1e-5
    assert (adapter.argmax(-1) == merged.argmax(-1)).all()


def test_logits_of_a_batch_equal_those_of_single_texts(finished_run: Run) -> None:
    predictor = Predictor(finished_run.folder)
    texts = ["Good.", BAD * 5, GOOD, "the " * 300] * 20
    together = predictor.logits(texts)
    apart = np.concatenate([predictor.logits([text]) for text in texts])
    assert np.abs(together - apart).max() < 1e-5


@pytest.mark.usefixtures("no_probe")
def test_base_without_head_and_rows_predicts_the_majority_class(own_run: Run) -> None:
    change_json(own_run, "config.json", dataset_name="/gone/rows.csv")
    predictor = Predictor(own_run.folder, "base")
    assert predictor.shows_baseline
    first, second = predictor.predict([BAD, GOOD])
    assert first == second
    assert first.scores == own_run.result()["train_label_shares"]
    assert "no trained head, so the majority class" in first.note


def test_base_with_its_own_head_predicts_its_labels(train_here: Callable[..., Run], tmp_path: Path) -> None:
    stars = make_tiny_bert(tmp_path / "stars")
    data = make_yelp_parquet(tmp_path / "yelp")
    run = train_here(model_name_or_path=str(stars), dataset_name=str(data), num_train_epochs=1)
    base, adapter = Predictor(run.folder, "base"), Predictor(run.folder, "adapter")
    assert not base.shows_baseline
    assert list(base.predict([GOOD])[0].scores) == ["1 star", "2 star", "3 stars", "4 stars", "5 stars"]
    assert np.abs(base.logits([GOOD]) - adapter.logits([GOOD])).max() > 1e-3
    assert Classifier.read(run).untrained == ()


@pytest.mark.parametrize(
    "text", ["😀" * 50, "word " * 2_000_000, "\u202e", "\0", "名前", "a" * 1_000_000, "."]
)
def test_predict_of_unusual_texts_takes_under_five_seconds(text: str, finished_run: Run) -> None:
    predictor = Predictor(finished_run.folder)
    start = time.perf_counter()
    prediction = predictor.predict([text])[0]
    assert time.perf_counter() - start < 5
    assert prediction.label in ("bad", "good")
    assert all(np.isfinite(list(prediction.scores.values())))


@pytest.mark.parametrize("text", ["", "  \n\t", None, 7, ["a"]])
def test_empty_text_raises_data_error(text: object, finished_run: Run) -> None:
    with pytest.raises(DataError, match="The text is empty"):
        check_texts([text])
    with pytest.raises(DataError, match="The text is empty"):
        Predictor(finished_run.folder, "base").predict(["fine", text])


def test_truncated_text_gives_the_same_logits(finished_run: Run) -> None:
    text = "word " * 100_000
    predictor = Predictor(finished_run.folder)
    assert len(truncate_text(text, 64)) < len(text)
    assert np.array_equal(predictor.logits([text]), predictor.logits([text[:50_000]]))


@pytest.mark.parametrize("variant", ["merge", "", "../adapter", None])
def test_unknown_variant_raises_run_error(variant: str, finished_run: Run) -> None:
    with pytest.raises(RunError, match="base, adapter, merged"):
        Predictor(finished_run.folder, variant)


def test_merged_variant_of_unmerged_run_raises_run_error(finished_run: Run) -> None:
    with pytest.raises(RunError, match="not merged yet"):
        Predictor(finished_run.folder, "merged")


@pytest.mark.parametrize(
    "lost",
    [
        "adapter",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/classifier.json",
    ],
)
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_adapter_with_lost_or_damaged_files_raises_run_error(
    lost: str, content: bytes | None, own_run: Run
) -> None:
    path = own_run.folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError) as error:
        Predictor(own_run.folder).predict([GOOD])
    assert own_run.run_id in str(error.value)
    assert "\n" not in str(error.value)


class Planted:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("variant", "name", "lost", "words"),
    [
        ("adapter", "adapter/adapter_model.safetensors", "adapter/adapter_model.safetensors", "damaged"),
        ("adapter", "adapter/adapter_model.bin", "adapter/adapter_model.safetensors", "is damaged"),
        ("merged", "merged/model.safetensors", "merged/model.safetensors", "is damaged"),
        ("merged", "merged/pytorch_model.bin", "merged/model.safetensors", "is damaged"),
    ],
)
def test_pickle_in_place_of_weights_is_refused_unread(
    variant: str, name: str, lost: str, words: str, merged_run: Run, tmp_path: Path
) -> None:
    run = copy_of(merged_run, tmp_path / "runs")
    (run.folder / lost).unlink()
    torch.save(Planted(tmp_path / "ran"), run.folder / name)
    with pytest.raises(RunError, match=words):
        Predictor(run.folder, variant)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("status", [runs.RUNNING, runs.FAILED, runs.SCHEDULED])
def test_run_without_an_adapter_raises_run_error(status: str, own_run: Run) -> None:
    for folder in (own_run.adapter, own_run.results):
        shutil.rmtree(folder)
    own_run.update(status=status)
    for variant in ("adapter", "base"):
        with pytest.raises(RunError, match=f"{own_run.run_id}.*no adapter.*pick a finished run"):
            Predictor(own_run.folder, variant)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_merged_model_with_lost_or_damaged_files_raises_run_error(
    lost: str, content: bytes | None, merged_run: Run, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(merged_run.folder, tmp_path / merged_run.run_id))
    path = run.merged / lost
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunError) as error:
        Predictor(run.folder, "merged").predict([GOOD])
    assert "\n" not in str(error.value)


def test_note_mentions_truncation_and_unknown_characters(finished_run: Run) -> None:
    predictor = Predictor(finished_run.folder)
    assert predictor.note("The food was bad.") == ""
    assert predictor.note("bad food " * 200) == "Only the first 64 tokens were read."
    assert predictor.note("bad " * 2_500_000) == "Only the first 64 tokens were read."
    assert "does not know any of these characters" in predictor.note("\U0001f600 \U0001f680")
