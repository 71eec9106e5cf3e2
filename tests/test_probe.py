"""The probe that stands in for a base model without a trained head: it learns, is named, and is kept."""

from types import SimpleNamespace

import numpy as np
import pytest

from peft_core.inference.predictor import Predictor
from peft_core.inference.probe import PROBE_FILE, fit_linear
from peft_core.rows import judged_rows
from peft_core.runs import Run


def test_a_fresh_head_is_stood_in_for_by_a_probe_that_learned(own_run: Run) -> None:
    predictor = Predictor(own_run.folder, "base")
    assert not predictor.shows_baseline
    rows = judged_rows(own_run)
    logits = predictor.logits(rows.texts)
    assert logits.shape == (len(rows), 2)
    assert (logits.argmax(-1) == rows.labels).mean() >= 0.9
    (answer,) = predictor.predict([rows.texts[0]])
    assert "logistic regression on its frozen vectors, fitted on" in answer.note
    assert (own_run.folder / PROBE_FILE).is_file()


def test_it_is_fitted_once_and_again_if_its_file_is_damaged(own_run: Run) -> None:
    texts = judged_rows(own_run).texts
    first = Predictor(own_run.folder, "base").logits(texts)
    path = own_run.folder / PROBE_FILE
    written = path.stat().st_mtime_ns
    assert np.array_equal(Predictor(own_run.folder, "base").logits(texts), first)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(b"no tensors")
    assert np.abs(Predictor(own_run.folder, "base").logits(texts) - first).max() < 1e-4


@pytest.mark.parametrize("labels", [[0, 0, 0], [2, 0, 2], [0, 1, 2]])
def test_labels_that_no_row_has_are_never_given(labels: list[int]) -> None:

    data = SimpleNamespace(problem_type="single_label_classification", num_labels=3)
    vectors = np.eye(3)
    weight, bias = fit_linear(data, vectors, np.array(labels))
    assert set((vectors @ weight.T + bias).argmax(-1)) <= set(labels)
