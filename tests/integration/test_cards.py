"""Tests of result and prediction cards: errors by problem type and number formatting."""

import re

import pytest

from peft_core.merging.certificate import tolerance, verified_certificate
from peft_core.problem_types import REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.service.workbench import Workbench
from peft_core.views import cards, components


def card(run: Run) -> str:
    return cards.result_card(Workbench.open(run.folder.parent).describe(run))


@pytest.mark.parametrize(
    "metric, words",
    [
        (0.7869, "0.787"),
        (0, "0.000"),
        (-0.25, "-0.250"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (2e-6, "2e-06"),
    ],
)
def test_format_metric_rounds_by_magnitude(metric: float, words: str) -> None:
    assert cards.format_metric(metric) == words


def test_multi_label_card_shows_each_label(topics: Run) -> None:
    card_html, report = card(topics), topics.result()
    assert card_html.count("<tr>") == 4
    assert "confusion" not in card_html and "scatter" not in card_html
    for row in report["per_label"]:
        assert f"<td>{row['precision']:.2f}</td><td>{row['recall']:.2f}</td>" in card_html
    assert f"all labels right {report['subset_accuracy']:.3f}" in card_html
    assert f"always “{report['baseline']['label']}”" in card_html


def test_regression_card_plots_predicted_against_true(stars: Run) -> None:
    card_html, report = card(stars), stars.result()
    assert card_html.count("<circle") == 60
    assert "mean error of always “3”" in card_html
    assert f"RMSE {report['rmse']:.3f}" in card_html


def test_scatter_places_points_on_scale() -> None:
    svg = cards.scatter([[0.0, 0.0], [10.0, 5.0], [10.0, 10.0]])
    places = [tuple(map(float, place)) for place in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert places == [(60, 250), (300, 130), (300, 10)]
    assert all(f">{mark}<" in svg for mark in (0, 2, 4, 6, 8, 10))


@pytest.mark.parametrize("points", [[[3.0, 3.0]], [[0.0, 0.0]], [[-1e9, 2e9]], [[1e-9, 2e-9]]])
def test_scatter_of_extreme_numbers_draws_point(points: list[list[float]]) -> None:
    assert cards.scatter(points).count("<circle") == 1


def test_cards_of_many_labels_show_mistakes_and_top_labels() -> None:
    names = [f"label {i}" for i in range(30)]
    matrix = [[int(i == j) for j in range(30)] for i in range(30)]
    report = {"problem_type": SINGLE, "confusion_matrix": matrix, "labels": names}
    assert cards.errors(report) == ""
    matrix[4][7] = 9
    assert "<td>label 4</td><td>label 7</td><td>9</td>" in cards.errors(report)
    shares = {name: i / 435 for i, name in enumerate(names)}
    card_html = cards.prediction_card("a", "b", {"label": names[-1], "scores": shares, "ms": 1})
    assert card_html.count('class="label"') == 12
    assert card_html.index("label 29</span>") < card_html.index("label 18</span>")
    assert "and 18 less likely labels" in card_html


@pytest.mark.parametrize("number, share", [(2.0, 0.25), (-7.0, 0.0), (99.0, 1.0)])
def test_regression_prediction_card_uses_scale_of_training_rows(number: float, share: float) -> None:
    answer = {"label": f"{number:g}", "scores": {}, "ms": 1, "value": number}
    card_html = cards.prediction_card("a", "b", answer, limits=[1.0, 5.0])
    assert f"--share:{share:.4f}" in card_html
    assert f'class="answer">{number:g}<' in card_html


def test_result_card_without_newer_metrics_is_rendered(finished_run: Run) -> None:
    description = Workbench.open(finished_run.folder.parent).describe(finished_run)
    left_out = ("per_label", "weighted_f1", "mcc")
    report = {key: entry for key, entry in description["result"].items() if key not in left_out}
    card_html = cards.result_card({**description, "result": report})
    assert 'data-testid="confusion"' in card_html and "by-label" not in card_html


def test_regression_certificate_does_not_mention_labels(merged_run: Run) -> None:
    certificate = verified_certificate(merged_run).to_dict()
    assert "labels flipped" in components.certificate(certificate)
    certificate_html = components.certificate({**certificate, "problem_type": REGRESSION})
    assert "label" not in certificate_html and "logit" not in certificate_html


def test_regression_tolerance_grows_with_magnitude() -> None:
    assert tolerance(SINGLE, [[300.0, -4.0]]) == 1e-5
    assert tolerance(REGRESSION, [[0.3], [-0.4]]) == 1e-5
    assert tolerance(REGRESSION, [[20.0], [-50_000.0]]) == pytest.approx(0.5)
