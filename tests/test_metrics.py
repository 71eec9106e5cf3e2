"""Accuracy, macro-F1 and the confusion matrix, against numbers worked out by hand."""

import pytest

from peft_core.metrics import Accuracy, MacroF1, classification_metrics, confusion_matrix


def test_metrics_of_six_texts() -> None:
    true, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
    found = classification_metrics(predicted, true)
    # F1 of each label: 4/5, 2/4, 2/3
    assert found == {
        "accuracy": pytest.approx(4 / 6),
        "macro_f1": pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3),
    }


def test_a_label_that_never_occurs_does_not_count() -> None:
    assert classification_metrics([3, 3], [3, 3]) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_the_majority_class_alone_scores_low_in_macro_f1() -> None:
    found = classification_metrics([0] * 10, [0] * 9 + [1])
    assert found["accuracy"] == pytest.approx(0.9)
    assert found["macro_f1"] == pytest.approx((18 / 19) / 2)


@pytest.mark.parametrize("metric, value", [(Accuracy, 0.5), (MacroF1, 1 / 3)])
def test_metrics_stand_alone_as_evaluate_metrics(metric: type, value: float) -> None:
    found = metric(keep_in_memory=True).compute(predictions=[0, 0], references=[0, 1])
    assert list(found.values()) == [pytest.approx(value)]


def test_confusion_matrix_has_the_truth_in_its_rows() -> None:
    assert confusion_matrix([1, 1, 0], [0, 1, 0], 3) == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
