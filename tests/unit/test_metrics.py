"""Metrics against scikit-learn and SciPy on random inputs, and their values where those are undefined."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from peft_core.inference import metrics
from peft_core.inference.metrics import confusion_matrix, headline_interval, label_scores, task_metrics
from peft_core.problem_types import METRICS, MULTI, REGRESSION, SINGLE

SEEDS = range(12)


def random_indices(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true indices; some seeds leave labels out of one side, or predict one label only."""
    rng = np.random.default_rng(seed)
    rows, labels = int(rng.integers(2, 60)), int(rng.integers(2, 7))
    true = rng.integers(labels, size=rows)
    predicted = np.where(rng.random(rows) < 0.5, true, rng.integers(labels, size=rows))
    return (np.zeros_like(true) if seed % 4 == 3 else predicted), true


def random_sets(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true rows of 0 and 1; empty rows, and labels that never occur."""
    rng = np.random.default_rng(seed)
    rows, labels = int(rng.integers(1, 50)), int(rng.integers(2, 6))
    share = rng.choice([0.05, 0.3, 0.8], size=labels)
    return tuple((rng.random((rows, labels)) < share).astype(int) for _ in range(2))


def random_numbers(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true numbers, with ties, of very different sizes."""
    rng = np.random.default_rng(seed)
    stars = rng.integers(1, 6, size=int(rng.integers(5, 60)))
    predicted = np.round(stars + rng.normal(size=stars.shape), 1 if seed % 2 else 12)
    unit = 10.0 ** rng.integers(-6, 7)
    return predicted * unit, stars * unit


@pytest.mark.parametrize("seed", SEEDS)
def test_single_label_metrics_agree_with_scikit_learn(seed: int) -> None:
    predicted, true = random_indices(seed)
    assert task_metrics(SINGLE, predicted, true) == {
        "accuracy": pytest.approx(sk.accuracy_score(true, predicted)),
        "macro_f1": pytest.approx(sk.f1_score(true, predicted, average="macro")),
        "weighted_f1": pytest.approx(sk.f1_score(true, predicted, average="weighted")),
        "mcc": pytest.approx(sk.matthews_corrcoef(true, predicted), abs=1e-12),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_multi_label_metrics_agree_with_scikit_learn(seed: int) -> None:
    predicted, true = random_sets(seed)
    macro = sk.f1_score(true, predicted, average="macro", zero_division=np.nan)
    assert task_metrics(MULTI, predicted, true.astype(float)) == {
        "micro_f1": pytest.approx(sk.f1_score(true, predicted, average="micro", zero_division=0)),
        "macro_f1": pytest.approx(macro),
        "subset_accuracy": pytest.approx(sk.accuracy_score(true, predicted)),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_regression_metrics_agree_with_scipy(seed: int) -> None:
    predicted, true = random_numbers(seed)
    assert task_metrics(REGRESSION, predicted, true) == {
        "spearman": pytest.approx(stats.spearmanr(true, predicted).statistic, abs=1e-9),
        "pearson": pytest.approx(stats.pearsonr(true, predicted).statistic, abs=1e-9),
        "mae": pytest.approx(sk.mean_absolute_error(true, predicted)),
        "rmse": pytest.approx(sk.root_mean_squared_error(true, predicted)),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_label_scores_agree_with_scikit_learn(seed: int) -> None:
    for predicted, true, labels in ((*random_indices(seed), 7), (*random_sets(seed), None)):
        labels = labels or true.shape[1]
        rows = label_scores(predicted, true, labels)
        expected = sk.precision_recall_fscore_support(true, predicted, labels=range(labels), zero_division=0)
        for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
            assert [row[name] for row in rows] == pytest.approx(values.tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_confusion_matrix_agrees_with_scikit_learn(seed: int) -> None:
    predicted, true = random_indices(seed)
    expected = sk.confusion_matrix(true, predicted, labels=range(7))
    assert confusion_matrix(predicted, true, 7) == expected.tolist()


def test_undefined_metrics_have_fixed_values() -> None:
    assert task_metrics(SINGLE, [0, 0], [0, 1])["mcc"] == 0
    assert task_metrics(SINGLE, [3, 3], [3, 3]) == {
        "accuracy": 1, "macro_f1": 1, "weighted_f1": 1, "mcc": 0
    }  # fmt: skip
    nothing = [[0, 0], [0, 0]]
    assert task_metrics(MULTI, nothing, nothing) == {"micro_f1": 0, "macro_f1": 0, "subset_accuracy": 1}
    constant = task_metrics(REGRESSION, [0.1, 0.1, 0.1], [1.0, 2.0, 3.0])
    assert (constant["spearman"], constant["pearson"]) == (0, 0)
    assert task_metrics(REGRESSION, [2.5], [2.0])["mae"] == 0.5


def test_pearson_of_numbers_too_large_to_square_is_finite() -> None:
    pearson = metrics.Pearson(keep_in_memory=True)
    computed = pearson.compute(predictions=[1e200, 2e200, 3e200], references=[1e-200, 2e-200, 4e-200])
    assert computed["pearson"] == pytest.approx(stats.pearsonr([1, 2, 3], [1, 2, 4]).statistic)


@pytest.mark.parametrize("problem_type", METRICS)
def test_task_metrics_keep_the_display_order(problem_type: str) -> None:
    row = [[1, 0], [0, 1]] if problem_type == MULTI else [0, 1]
    assert tuple(task_metrics(problem_type, row, row)) == METRICS[problem_type]


def test_metric_works_as_an_evaluate_metric() -> None:
    computed = metrics.MacroF1(keep_in_memory=True).compute(predictions=[0, 0], references=[0, 1])
    assert computed == {"macro_f1": pytest.approx(1 / 3)}


@pytest.mark.parametrize("problem_type", METRICS)
def test_headline_interval_contains_the_metric_and_narrows_with_rows(problem_type: str) -> None:
    rng = np.random.default_rng(0)
    widths = []
    for rows in (50, 2000):
        if problem_type == REGRESSION:
            true = rng.normal(size=rows)
            predicted = true + rng.normal(size=rows)
        else:
            true = rng.integers(2, size=rows if problem_type == SINGLE else (rows, 4))
            predicted = np.where(rng.random(true.shape) < 0.8, true, 1 - true)
        low, high = headline_interval(problem_type, predicted, true)
        headline = next(iter(task_metrics(problem_type, predicted, true).values()))
        assert low < headline < high
        assert headline_interval(problem_type, predicted, true) == [low, high]
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_headline_interval_of_accuracy_is_wilson() -> None:
    predicted, true = np.array([1] * 8 + [0] * 2), np.ones(10, int)
    interval = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert headline_interval(SINGLE, predicted, true) == pytest.approx(
        [interval.low, interval.high], abs=1e-4
    )
