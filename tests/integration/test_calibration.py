"""Tests of decision rules: temperature, thresholds and abstention, how they are chosen and saved."""

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


def sample_logits(rows: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels sampled from their probabilities, which are therefore calibrated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, labels))
    shares = PLAIN.probabilities(logits, SINGLE)
    return logits, (shares.cumsum(-1) > rng.random((rows, 1))).argmax(-1)


def rows_of(logits: np.ndarray, labels: np.ndarray) -> EvaluationRows:
    return EvaluationRows(["x"] * len(labels), None, labels, logits)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_fit_temperature_recovers_scale(scale: float) -> None:
    logits, labels = sample_logits(20_000, 3)
    assert calibration.fit_temperature(scale * logits, labels, SINGLE) == pytest.approx(scale, rel=0.05)
    yes = (np.random.default_rng(1).random(logits.shape) < PLAIN.probabilities(logits, MULTI)).astype(int)
    assert calibration.fit_temperature(scale * logits, yes, MULTI) == pytest.approx(scale, rel=0.05)


def test_calibration_error_is_small_only_if_calibrated() -> None:
    logits, labels = sample_logits(20_000, 3)
    right = (logits.argmax(-1) == labels).astype(float)
    calibrated = calibration.expected_calibration_error(PLAIN.probabilities(logits, SINGLE).max(-1), right)
    overconfident = calibration.expected_calibration_error(
        PLAIN.probabilities(4 * logits, SINGLE).max(-1), right
    )
    assert calibrated < 0.01 < 0.1 < overconfident


def test_calibration_error_is_weighted_distance_of_bins() -> None:
    confidence, right = np.array([0.55, 0.58, 0.95, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    bins = calibration.reliability(confidence, right)
    assert [row["count"] for row in bins] == [2, 2]
    assert calibration.expected_calibration_error(confidence, right) == pytest.approx(
        0.5 * abs(0.565 - 0.5) + 0.5 * abs(0.975 - 1.0)
    )


def test_losses_match_scikit_learn() -> None:
    logits, labels = sample_logits(500, 2)
    shares = PLAIN.probabilities(logits, SINGLE)
    assert calibration.log_loss(shares, labels, SINGLE) == pytest.approx(log_loss(labels, shares))
    brier = calibration.brier_score(shares, labels, SINGLE)
    assert brier == pytest.approx(2 * brier_score_loss(labels, shares[:, 1]))


def test_thresholds_of_two_labels_act_as_one_threshold() -> None:
    logits, _ = sample_logits(300, 2)
    second = PLAIN.probabilities(logits, SINGLE)[:, 1]
    decided = DecisionRule(thresholds=(0.7, 0.3)).decide(logits, SINGLE)
    assert (decided == (second >= 0.3)).all()
    assert (DecisionRule(thresholds=(0.5, 0.5)).decide(logits, SINGLE) == logits.argmax(-1)).all()
    several = DecisionRule(thresholds=(0.2, 0.9)).decide(logits, MULTI)
    assert (several == (PLAIN.probabilities(logits, MULTI) >= [0.2, 0.9])).all()


@pytest.mark.parametrize("labels", [2, 4])
def test_best_thresholds_do_not_lower_f1_on_their_rows(labels: int) -> None:
    logits, true = sample_logits(600, labels)
    logits[:, 0] += 2.5  # a model that predicts the first label too often
    rows = rows_of(logits, true)
    before = f1_score(true, logits.argmax(-1), average="macro")
    rule = DecisionRule(thresholds=calibration.best_thresholds(rows, PLAIN, SINGLE))
    assert f1_score(true, rule.decide(logits, SINGLE), average="macro") > before + 0.02
    yes = np.eye(labels, dtype=int)[true]
    thresholds = calibration.best_thresholds(rows_of(logits, yes), PLAIN, MULTI)
    for i, threshold in enumerate(thresholds):
        predicted = PLAIN.probabilities(logits, MULTI)[:, i] >= threshold
        assert f1_score(yes[:, i], predicted) >= f1_score(yes[:, i], logits[:, i] >= 0)


def test_coverage_curve_is_sorted_and_ends_at_full_coverage() -> None:
    logits, labels = sample_logits(2000, 3)
    curve = calibration.coverage_curve(rows_of(logits, labels), PLAIN, SINGLE)
    assert curve[-1]["coverage"] == 1.0
    assert curve[-1]["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())
    assert [p["coverage"] for p in curve] == sorted(p["coverage"] for p in curve)
    assert [p["threshold"] for p in curve] == sorted((p["threshold"] for p in curve), reverse=True)
    half = next(p for p in curve if p["coverage"] >= 0.5)
    assert half["accuracy"] > curve[-1]["accuracy"] + 0.05


def test_least_confidence_reaches_target_accuracy() -> None:
    logits, labels = sample_logits(2000, 3)
    rows = rows_of(logits, labels)
    bound = calibration.least_confidence(rows, PLAIN, SINGLE, 0.95)
    rule = DecisionRule(abstain_below=bound)
    answered = ~rule.abstains(logits, SINGLE)
    assert 0.2 < answered.mean() < 0.9
    assert (logits.argmax(-1) == labels)[answered].mean() >= 0.949
    with pytest.raises(RunError, match="No minimum confidence gives an accuracy of 100%"):
        calibration.least_confidence(rows_of(-logits, labels), PLAIN, SINGLE, 1.0)
    assert calibration.least_confidence(rows, PLAIN, SINGLE, 0.1) == 0.0


def test_report_compares_plain_and_chosen_rule_on_test_rows(finished_run: Run) -> None:
    report = calibration.report(finished_run, DecisionRule(temperature=5.0, abstain_below=0.9))
    rows = load_evaluation_rows(finished_run)
    assert report["rows"] == len(rows)
    assert report["plain"]["metrics"]["accuracy"] == finished_run.result()["accuracy"]
    assert report["plain"]["coverage"] == 1.0 > report["chosen"]["coverage"]
    assert report["plain"]["ece"] != report["chosen"]["ece"]
    assert sum(row["count"] for row in report["plain"]["bins"]) == len(rows)
    assert json.loads(json.dumps(report)) == report


def test_report_of_multi_label_run_covers_each_label(topics: Run) -> None:
    report = calibration.report(topics, calibration.suggest(topics, thresholds=True))
    assert report["plain"]["metrics"]["micro_f1"] == topics.result()["micro_f1"]
    assert sum(row["count"] for row in report["chosen"]["bins"]) == 3 * report["rows"]


def test_suggested_rule_lowers_validation_log_loss(topics: Run) -> None:
    rows = load_evaluation_rows(topics, "validation")
    rule = calibration.suggest(topics)
    losses = [
        calibration.log_loss(r.probabilities(rows.logits, MULTI), rows.labels, MULTI) for r in (PLAIN, rule)
    ]
    assert rule.temperature != 1.0 and losses[1] <= losses[0]


def test_suggest_and_report_refuse_regression_and_few_rows(stars: Run, own_run: Run) -> None:
    with pytest.raises(RunError, match="has 20 validation rows, too few for calibration"):
        calibration.suggest(own_run)
    with pytest.raises(RunError, match="predicts numbers"):
        calibration.report(stars, PLAIN)
    own_run.validation.unlink()
    reseal(own_run.results)
    with pytest.raises(RunError, match="has no validation rows"):
        calibration.suggest(own_run)


def test_saved_rule_is_exported_and_plain_rule_removes_it(merged_run: Run, tmp_path: Path) -> None:
    run = copy_of(merged_run, tmp_path)
    rule, labels = DecisionRule(1.5, (0.4, 0.6), 0.7), ("bad", "good")
    rule.save(run, labels)
    assert DecisionRule.read(run) == rule
    for kind in ("adapter", "merged"):
        with zipfile.ZipFile(zip_of(run, kind)) as archive:
            exported = json.loads(archive.read(DECISION_FILE))
        assert exported == {"temperature": 1.5, "thresholds": {"bad": 0.4, "good": 0.6}, "abstain_below": 0.7}
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
            "thresholds are for 'bad'; give one for each of the labels 'bad', 'good'",
        ),
        ({"thresholds": {"good": 0.5, "bad": 1.5}}, "The threshold of 'bad' is 1.5"),
        ({"abstain_below": float("nan")}, "abstain_below is nan"),
    ],
)
def test_invalid_decision_rule_raises_one_sentence(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DecisionRule.from_dict(values, ("bad", "good"))


def test_damaged_decision_rule_raises_one_sentence(own_run: Run) -> None:
    (own_run.adapter / DECISION_FILE).write_text("{", encoding="utf-8")
    reseal(own_run.adapter)
    with pytest.raises(RunError, match="damaged; choose thresholds and temperature again"):
        DecisionRule.read(own_run)


def test_decide_of_regression_returns_output_and_never_abstains() -> None:
    logits = np.array([[3.5], [-1.0]])
    rule = DecisionRule(temperature=2.0, abstain_below=0.9)
    assert rule.decide(logits, REGRESSION).tolist() == [3.5, -1.0]
    assert not rule.abstains(logits, REGRESSION).any()


def test_save_updates_folder_that_appears_concurrently(
    merged_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a folder renamed into place after the folders were listed kept the earlier rule."""
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


def test_update_decision_of_removed_folder_does_nothing(own_run: Run) -> None:
    decision.update_decision(own_run, own_run.merged)
    assert not own_run.merged.exists()
