"""The probe in place of a missing head of a base model: fitting, note and file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import copy_of

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.inference import probe
from peft_core.inference.predictor import Predictor
from peft_core.inference.probe import PROBE_FILE, fit_linear
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.training.entry import train


def test_base_without_a_head_predicts_with_a_fitted_probe(own_run: Run) -> None:
    predictor = Predictor(own_run.folder, "base")
    assert not predictor.shows_baseline
    rows = load_evaluation_rows(own_run)
    logits = predictor.logits(rows.texts)
    assert logits.shape == (len(rows), 2)
    assert (logits.argmax(-1) == rows.labels).mean() >= 0.9
    (answer,) = predictor.predict([rows.texts[0]])
    assert "logistic regression on its frozen vectors, fitted on" in answer.note
    assert (own_run.folder / PROBE_FILE).is_file()


def test_probe_is_fitted_again_only_if_its_file_is_damaged(own_run: Run) -> None:
    texts = load_evaluation_rows(own_run).texts
    first = Predictor(own_run.folder, "base").logits(texts)
    path = own_run.folder / PROBE_FILE
    written = path.stat().st_mtime_ns
    assert np.array_equal(Predictor(own_run.folder, "base").logits(texts), first)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(b"no tensors")
    assert np.abs(Predictor(own_run.folder, "base").logits(texts) - first).max() < 1e-4


def test_probe_of_the_same_rows_and_base_is_fitted_once_for_all_runs(
    no_probe: None,
    own_run: Run,
    finished_run: Run,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = load_evaluation_rows(own_run).texts
    first = Predictor(own_run.folder, "base").logits(texts)
    fitted = []
    fit = probe._fit
    monkeypatch.setattr(probe, "_fit", lambda run, *rest: fitted.append(run) or fit(run, *rest))
    second = copy_of(finished_run, tmp_path / "second")
    assert np.array_equal(Predictor(second.folder, "base").logits(texts), first)
    assert fitted == [] and (second.folder / PROBE_FILE).is_file()
    other = runs.create(tmp_path / "other", TrainConfig.from_dict({**settings, "max_train_samples": 60}))
    train(other.folder)
    Predictor(other.folder, "base")
    unknown = copy_of(finished_run, tmp_path / "unknown")
    (unknown.folder / "inputs.json").unlink()
    Predictor(unknown.folder, "base")
    assert fitted == [other, unknown]


@pytest.mark.parametrize("labels", [[0, 0, 0], [2, 0, 2], [0, 1, 2]])
def test_fit_linear_never_predicts_labels_without_rows(labels: list[int]) -> None:

    data = SimpleNamespace(problem_type="single_label_classification", num_labels=3)
    vectors = np.eye(3)
    weight, bias = fit_linear(data, vectors, np.array(labels))
    assert set((vectors @ weight.T + bias).argmax(-1)) <= set(labels)
