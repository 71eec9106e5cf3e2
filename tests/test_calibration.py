"""Decisions: what a temperature, thresholds and abstaining do, how they are chosen and kept."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import copy_of
from run_files import reseal
from sklearn.metrics import brier_score_loss, f1_score, log_loss

from peft_core.errors import ConfigError, RunError
from peft_core.export.archives import zip_of
from peft_core.inference import calibration, decision
from peft_core.inference.decision import DECISION_FILE, PLAIN, DecisionRule
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import EvaluationRows, load_evaluation_rows


def drawn(rows: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw outputs and labels that were drawn from their very probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, labels))
    shares = PLAIN.probabilities(logits, SINGLE)
    return logits, (shares.cumsum(-1) > rng.random((rows, 1))).argmax(-1)


def rows_of(logits: np.ndarray, labels: np.ndarray) -> EvaluationRows:
    return EvaluationRows(["x"] * len(labels), None, labels, logits)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(scale: float) -> None:
    logits, labels = drawn(20_000, 3)
    assert calibration.fit_temperature(scale * logits, labels, SINGLE) == pytest.approx(scale, rel=0.05)
    yes = (np.random.default_rng(1).random(logits.shape) < PLAIN.probabilities(logits, MULTI)).astype(int)
    assert calibration.fit_temperature(scale * logits, yes, MULTI) == pytest.approx(scale, rel=0.05)


def test_honest_probabilities_have_no_calibration_error_and_bold_ones_have() -> None:
    logits, labels = drawn(20_000, 3)
    right = (logits.argmax(-1) == labels).astype(float)
    honest = calibration.expected_calibration_error(PLAIN.probabilities(logits, SINGLE).max(-1), right)
    bold = calibration.expected_calibration_error(PLAIN.probabilities(4 * logits, SINGLE).max(-1), right)
    assert honest < 0.01 < 0.1 < bold


def test_the_error_is_the_weighted_distance_of_its_bins() -> None:
    confidence, right = np.array([0.55, 0.58, 0.95, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    bins = calibration.reliability(confidence, right)
    assert [row["count"] for row in bins] == [2, 2]
    assert calibration.expected_calibration_error(confidence, right) == pytest.approx(
        0.5 * abs(0.565 - 0.5) + 0.5 * abs(0.975 - 1.0)
    )


def test_losses_are_scikit_learns() -> None:
    logits, labels = drawn(500, 2)
    shares = PLAIN.probabilities(logits, SINGLE)
    assert calibration.log_loss(shares, labels, SINGLE) == pytest.approx(log_loss(labels, shares))
    found = calibration.brier_score(shares, labels, SINGLE)
    assert found == pytest.approx(2 * brier_score_loss(labels, shares[:, 1]))


def test_thresholds_of_two_labels_are_the_usual_threshold() -> None:
    logits, _ = drawn(300, 2)
    second = PLAIN.probabilities(logits, SINGLE)[:, 1]
    decided = DecisionRule(thresholds=(0.7, 0.3)).decide(logits, SINGLE)
    assert (decided == (second >= 0.3)).all()
    assert (DecisionRule(thresholds=(0.5, 0.5)).decide(logits, SINGLE) == logits.argmax(-1)).all()
    several = DecisionRule(thresholds=(0.2, 0.9)).decide(logits, MULTI)
    assert (several == (PLAIN.probabilities(logits, MULTI) >= [0.2, 0.9])).all()


@pytest.mark.parametrize("labels", [2, 4])
def test_chosen_thresholds_are_no_worse_on_the_rows_they_were_chosen_on(labels: int) -> None:
    logits, true = drawn(600, labels)
    logits[:, 0] += 2.5  # a model that says the first label too often
    rows = rows_of(logits, true)
    before = f1_score(true, logits.argmax(-1), average="macro")
    rule = DecisionRule(thresholds=calibration.best_thresholds(rows, PLAIN, SINGLE))
    assert f1_score(true, rule.decide(logits, SINGLE), average="macro") > before + 0.02
    yes = np.eye(labels, dtype=int)[true]
    found = calibration.best_thresholds(rows_of(logits, yes), PLAIN, MULTI)
    for i, threshold in enumerate(found):
        given = PLAIN.probabilities(logits, MULTI)[:, i] >= threshold
        assert f1_score(yes[:, i], given) >= f1_score(yes[:, i], logits[:, i] >= 0)


def test_the_curve_goes_from_the_surest_answer_to_all() -> None:
    logits, labels = drawn(2000, 3)
    curve = calibration.coverage_curve(rows_of(logits, labels), PLAIN, SINGLE)
    assert curve[-1]["coverage"] == 1.0
    assert curve[-1]["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    assert [p["coverage"] for p in curve] == sorted(p["coverage"] for p in curve)
    assert [p["threshold"] for p in curve] == sorted((p["threshold"] for p in curve), reverse=True)
    half = next(p for p in curve if p["coverage"] >= 0.5)
    assert half["accuracy"] > curve[-1]["accuracy"] + 0.05


def test_abstaining_keeps_the_promise_on_the_rows_it_was_chosen_on() -> None:
    logits, labels = drawn(2000, 3)
    rows = rows_of(logits, labels)
    bound = calibration.least_confidence(rows, PLAIN, SINGLE, 0.95)
    rule = DecisionRule(abstain_below=bound)
    kept = ~rule.abstains(logits, SINGLE)
    assert 0.2 < kept.mean() < 0.9
    assert (logits.argmax(-1) == labels)[kept].mean() >= 0.949
    with pytest.raises(RunError, match="No confidence makes 100% of the answers right"):
        calibration.least_confidence(rows_of(-logits, labels), PLAIN, SINGLE, 1.0)
    assert calibration.least_confidence(rows, PLAIN, SINGLE, 0.1) == 0.0


def test_a_runs_report_judges_the_test_rows_before_and_after(finished_run: Run) -> None:
    found = calibration.report(finished_run, DecisionRule(temperature=5.0, abstain_below=0.9))
    rows = load_evaluation_rows(finished_run)
    assert found["rows"] == len(rows)
    assert found["plain"]["metrics"]["accuracy"] == finished_run.result()["accuracy"]
    assert found["plain"]["coverage"] == 1.0 > found["chosen"]["coverage"]
    assert found["plain"]["ece"] != found["chosen"]["ece"]
    assert sum(row["count"] for row in found["plain"]["bins"]) == len(rows)
    assert json.loads(json.dumps(found)) == found


def test_several_labels_are_reported_too(topics: Run) -> None:
    found = calibration.report(topics, calibration.suggest(topics, thresholds=True))
    assert found["plain"]["metrics"]["micro_f1"] == topics.result()["micro_f1"]
    assert sum(row["count"] for row in found["chosen"]["bins"]) == 3 * found["rows"]


def test_a_suggestion_lowers_the_log_loss_of_validation_rows(topics: Run) -> None:
    rows = load_evaluation_rows(topics, "validation")
    rule = calibration.suggest(topics)
    losses = [
        calibration.log_loss(r.probabilities(rows.logits, MULTI), rows.labels, MULTI) for r in (PLAIN, rule)
    ]
    assert rule.temperature != 1.0 and losses[1] <= losses[0]


def test_numbers_have_no_probability_and_few_rows_no_choice(stars: Run, own_run: Run) -> None:
    with pytest.raises(RunError, match="has 20 validation rows, too few to choose by"):
        calibration.suggest(own_run)
    with pytest.raises(RunError, match="predicts numbers"):
        calibration.report(stars, PLAIN)
    own_run.validation.unlink()
    reseal(own_run.results)
    with pytest.raises(RunError, match="keeps no validation rows"):
        calibration.suggest(own_run)


def test_a_choice_is_kept_and_travels_and_the_plain_rule_leaves_no_trace(
    merged_run: Run, tmp_path: Path
) -> None:
    run = copy_of(merged_run, tmp_path)
    rule, labels = DecisionRule(1.5, (0.4, 0.6), 0.7), ("bad", "good")
    rule.save(run, labels)
    assert DecisionRule.read(run) == rule
    for kind in ("adapter", "merged"):
        with zipfile.ZipFile(zip_of(run, kind)) as archive:
            held = json.loads(archive.read(DECISION_FILE))
        assert held == {"temperature": 1.5, "thresholds": {"bad": 0.4, "good": 0.6}, "abstain_below": 0.7}
    PLAIN.save(run, labels)
    assert DecisionRule.read(run) == PLAIN
    assert not (run.merged / DECISION_FILE).exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": 0}, "temperature is 0; it must be from 0.01 to 100"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        (
            {"thresholds": {"bad": 0.5}},
            "thresholds are of 'bad'; give one for each of the labels 'bad', 'good'",
        ),
        ({"thresholds": {"good": 0.5, "bad": 1.5}}, "The threshold of 'bad' is 1.5"),
        ({"abstain_below": float("nan")}, "abstain_below is nan"),
    ],
)
def test_a_wrong_choice_is_one_sentence(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DecisionRule.from_dict(values, ("bad", "good"))


def test_a_damaged_choice_is_one_sentence(own_run: Run) -> None:
    (own_run.adapter / DECISION_FILE).write_text("{", encoding="utf-8")
    reseal(own_run.adapter)
    with pytest.raises(RunError, match="damaged; choose thresholds and temperature again"):
        DecisionRule.read(own_run)


def test_a_number_is_its_own_answer() -> None:
    logits = np.array([[3.5], [-1.0]])
    rule = DecisionRule(temperature=2.0, abstain_below=0.9)
    assert rule.decide(logits, REGRESSION).tolist() == [3.5, -1.0]
    assert not rule.abstains(logits, REGRESSION).any()


def test_save_reaches_a_folder_that_appears_meanwhile(
    merged_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders were listed first: one that got its name after that kept the earlier rule."""
    run = copy_of(merged_run, tmp_path)
    aside = run.merged.rename(tmp_path / "aside")
    replace_file = decision.replace_file

    def replace_and_rename(folder: Path, *arguments: Any) -> None:
        replace_file(folder, *arguments)
        if aside.exists():
            aside.rename(run.merged)

    monkeypatch.setattr(decision, "replace_file", replace_and_rename)
    DecisionRule(temperature=2.0).save(run, ("bad", "good"))
    assert (run.merged / DECISION_FILE).read_bytes() == (run.adapter / DECISION_FILE).read_bytes()
    run.verify(run.merged)


def test_update_decision_of_a_folder_that_was_removed_is_no_error(own_run: Run) -> None:
    decision.update_decision(own_run, own_run.merged)
    assert not own_run.merged.exists()
