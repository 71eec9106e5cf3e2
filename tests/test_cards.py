"""Result and prediction cards: where the errors lie in each task, and numbers as people read them."""

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
    "value, words",
    [
        (0.7869, "0.787"),
        (0, "0.000"),
        (-0.25, "-0.250"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (2e-6, "2e-06"),
    ],
)
def test_metrics_as_people_read_them(value: float, words: str) -> None:
    assert cards.format_metric(value) == words


def test_several_labels_show_each_label(topics: Run) -> None:
    found, result = card(topics), topics.result()
    assert found.count("<tr>") == 4
    assert "confusion" not in found and "scatter" not in found
    for row in result["per_label"]:
        assert f"<td>{row['precision']:.2f}</td><td>{row['recall']:.2f}</td>" in found
    assert f"all labels right {result['subset_accuracy']:.3f}" in found
    assert f"always “{result['baseline']['label']}”" in found


def test_numbers_show_predicted_against_true(stars: Run) -> None:
    found, result = card(stars), stars.result()
    assert found.count("<circle") == 60
    assert "mean error of always “3”" in found
    assert f"RMSE {result['rmse']:.3f}" in found


def test_points_lie_where_their_numbers_are() -> None:
    found = cards.scatter([[0.0, 0.0], [10.0, 5.0], [10.0, 10.0]])
    places = [tuple(map(float, place)) for place in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', found)]
    assert places == [(60, 250), (300, 130), (300, 10)]
    assert all(f">{mark}<" in found for mark in (0, 2, 4, 6, 8, 10))


@pytest.mark.parametrize("points", [[[3.0, 3.0]], [[0.0, 0.0]], [[-1e9, 2e9]], [[1e-9, 2e-9]]])
def test_any_numbers_can_be_drawn(points: list[list[float]]) -> None:
    assert cards.scatter(points).count("<circle") == 1


def test_many_labels_show_their_mistakes_and_their_likeliest_answers() -> None:
    names = [f"label {i}" for i in range(30)]
    matrix = [[int(i == j) for j in range(30)] for i in range(30)]
    result = {"problem_type": SINGLE, "confusion_matrix": matrix, "labels": names}
    assert cards.errors(result) == ""
    matrix[4][7] = 9
    assert "<td>label 4</td><td>label 7</td><td>9</td>" in cards.errors(result)
    shares = {name: i / 435 for i, name in enumerate(names)}
    found = cards.prediction_card("a", "b", {"label": names[-1], "scores": shares, "ms": 1})
    assert found.count('class="label"') == 12
    assert found.index("label 29</span>") < found.index("label 18</span>")
    assert "and 18 less likely labels" in found


@pytest.mark.parametrize("value, share", [(2.0, 0.25), (-7.0, 0.0), (99.0, 1.0)])
def test_a_number_stands_on_the_scale_of_the_training_rows(value: float, share: float) -> None:
    answer = {"label": f"{value:g}", "scores": {}, "ms": 1, "value": value}
    found = cards.prediction_card("a", "b", answer, limits=[1.0, 5.0])
    assert f"--share:{share:.4f}" in found
    assert f'class="answer">{value:g}<' in found


def test_runs_from_before_the_tasks_still_have_a_card(finished_run: Run) -> None:
    description = Workbench.open(finished_run.folder.parent).describe(finished_run)
    left_out = ("per_label", "weighted_f1", "mcc")
    result = {key: value for key, value in description["result"].items() if key not in left_out}
    found = cards.result_card({**description, "result": result})
    assert 'data-testid="confusion"' in found and "by-label" not in found


def test_the_certificate_of_numbers_speaks_of_no_labels(merged_run: Run) -> None:
    held = verified_certificate(merged_run).to_dict()
    assert "labels flipped" in components.certificate(held)
    found = components.certificate({**held, "problem_type": REGRESSION})
    assert "label" not in found and "logit" not in found


def test_numbers_may_differ_by_what_rounding_does_at_their_size() -> None:
    assert tolerance(SINGLE, [[300.0, -4.0]]) == 1e-5
    assert tolerance(REGRESSION, [[0.3], [-0.4]]) == 1e-5
    assert tolerance(REGRESSION, [[20.0], [-50_000.0]]) == pytest.approx(0.5)
