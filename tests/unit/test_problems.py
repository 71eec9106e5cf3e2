"""Scores and decisions from raw outputs by problem type, against functions of PyTorch."""

import numpy as np
import pytest
import torch

from peft_core.problem_types import MULTI, REGRESSION, SINGLE, decide, join_labels, label_flips, scores

LOGITS = np.array([[2.0, -1.0, 0.5], [-800.0, 800.0, 0.0], [-0.1, -0.2, -0.3]], dtype=np.float32)


def test_scores_equal_softmax_and_sigmoid() -> None:
    raw = torch.from_numpy(LOGITS).double()
    assert scores(LOGITS, SINGLE) == pytest.approx(raw.softmax(-1).numpy())
    assert scores(LOGITS, MULTI) == pytest.approx(raw.sigmoid().numpy())
    assert scores(LOGITS[:, :1], REGRESSION) == pytest.approx(LOGITS[:, :1])


def test_decide_returns_index_indicators_or_number() -> None:
    assert decide(LOGITS, SINGLE).tolist() == [0, 1, 0]
    assert decide(LOGITS, MULTI).tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert decide(LOGITS[:, :1], REGRESSION) == pytest.approx([2.0, -800.0, -0.1])


def test_label_flips_counts_rows_with_another_decision() -> None:
    moved = LOGITS.copy()
    moved[0, 2] = -0.5  # drops one of two labels
    assert label_flips(SINGLE, LOGITS, LOGITS, moved) == 0
    assert label_flips(MULTI, LOGITS, LOGITS, moved) == 1
    moved[2, 1] = 0.0
    assert label_flips(SINGLE, LOGITS, moved, LOGITS) == 1
    assert label_flips(MULTI, LOGITS, moved) == 2
    assert label_flips(REGRESSION, LOGITS[:, :1], LOGITS[:, 1:2]) == 0


def test_join_labels_separates_with_commas() -> None:
    assert join_labels(["a", "b"]) == "a, b"
    assert join_labels([]) == "no label"
