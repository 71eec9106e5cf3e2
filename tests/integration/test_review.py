"""Review of the evaluation rows: the hardest ones, search, and labels that may be wrong."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_files import change_json, reseal
from task_runs import TOPICS

from peft_core.errors import ConfigError, RunError
from peft_core.inference.decision import DecisionRule
from peft_core.inference.review import Evaluation, hardest, search_rows
from peft_core.inference.suspects import suspected_labels
from peft_core.problem_types import NO_LABEL
from peft_core.runs import Run

FLIPPED = [3, 10, 21]
Change = Callable[[pd.DataFrame], pd.DataFrame]


def with_changed_rows(run: Run, folder: Path, change: Change) -> Run:
    """Return a copy of a run with changed test rows."""
    copy = Run(shutil.copytree(run.folder, folder / run.run_id))
    change(pd.read_parquet(copy.evaluation)).to_parquet(copy.evaluation)
    reseal(copy.results)
    return copy


def flip_labels_of_sure_model(rows: pd.DataFrame) -> pd.DataFrame:
    """Make the model confident and correct on rows of two labels, and then flip three labels."""
    rows["logits"] = [
        np.where(np.arange(2) == label, 4.0 + i / 100, -4.0) for i, label in enumerate(rows.label)
    ]
    rows.loc[FLIPPED, "label"] = 1 - rows.loc[FLIPPED, "label"]
    return rows


@pytest.fixture
def flipped(finished_run: Run, tmp_path: Path) -> Run:
    return with_changed_rows(finished_run, tmp_path, flip_labels_of_sure_model)


def row_numbers(rows: list[dict]) -> list[int]:
    return [row["row"] for row in rows]


def test_hardest_orders_wrong_rows_by_loss(flipped: Run) -> None:
    rows = hardest(flipped)
    assert row_numbers(rows) == [22, 11, 4]
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(8.21 + np.log1p(np.exp(-8.21)))
    stored_row = pd.read_parquet(flipped.evaluation).iloc[21]
    assert rows[0]["text"] == stored_row.text and rows[0]["text_pair"] is None
    assert {rows[0]["true"], rows[0]["predicted"]} == {"bad", "good"}
    assert rows[0]["true"] == ("bad", "good")[stored_row.label]
    assert rows[0]["confidence"] == pytest.approx(1 / (1 + np.exp(-8.21)))
    assert f"The model says {rows[0]['predicted']} (above 99.9 %)" in rows[0]["reason"]
    assert json.loads(json.dumps(rows)) == rows
    assert row_numbers(hardest(flipped, max_rows=2)) == [22, 11]


def test_hardest_uses_saved_decision_rule(flipped: Run) -> None:
    before = hardest(flipped)[0]
    decision = DecisionRule(temperature=4.0, thresholds=(0.02, 0.98))
    decision.save(flipped, ("bad", "good"))
    after = hardest(flipped)
    assert after[0]["loss"] < before["loss"]
    assert 0.85 < max(row["confidence"] for row in after) < 0.9
    assert {row["predicted"] for row in after} == {"bad"}
    assert len(after) > len(FLIPPED)


def test_hardest_of_regression_orders_by_absolute_error(stars: Run, tmp_path: Path) -> None:
    def with_outlier(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[5, "label"] += 40
        return rows

    rows = hardest(with_changed_rows(stars, tmp_path, with_outlier), max_rows=3)
    assert rows[0]["row"] == 6
    assert rows[0]["reason"].endswith("too low.")
    assert rows[0]["loss"] == pytest.approx(
        abs(float(rows[0]["true"]) - float(rows[0]["predicted"])), abs=0.02
    )
    assert rows[0]["confidence"] is None and not rows[0]["wrong"]


def test_hardest_of_multi_label_reason_names_differing_labels(topics: Run, tmp_path: Path) -> None:
    def negate_third_label(rows: pd.DataFrame) -> pd.DataFrame:
        rows["logits"] = [np.where(np.asarray(label) == 1, 5.0, -5.0) for label in rows.label]
        rows.at[2, "label"] = 1 - np.asarray(rows.label[2])
        return rows

    run = with_changed_rows(topics, tmp_path, negate_third_label)
    (row,) = hardest(run)
    assert row["row"] == 3 and row["loss"] == pytest.approx(5 + np.log1p(np.exp(-5)))
    true_labels = np.asarray(pd.read_parquet(run.evaluation).label[2])
    for name, is_true in zip(TOPICS, true_labels, strict=True):
        side = "leaves out" if is_true else "gives"
        assert side in row["reason"] and name in row["reason"].split(side)[1]
    assert row["true"] == (
        ", ".join(name for name, is_true in zip(TOPICS, true_labels, strict=True) if is_true) or NO_LABEL
    )


def test_search_rows_reads_validation_split(finished_run: Run) -> None:
    assert search_rows(finished_run, part="validation")["total"] == len(
        pd.read_parquet(finished_run.validation)
    )
    with pytest.raises(RunError, match="test or validation"):
        search_rows(finished_run, part="../test")


def with_accented_texts(rows: pd.DataFrame) -> pd.DataFrame:
    rows.loc[:3, "text"] = [
        "Crème BRÛLÉE, très bon",
        "creme only",
        "İstanbul straße ﬁne",
        "a\tb CREME brulee",
    ]
    return rows


@pytest.mark.parametrize(
    "query, expected_rows",
    [
        ("creme brulee", [1, 4]),
        ("BRÛLÉE crème", [1, 4]),
        ("crem", [1, 2, 4]),
        ("STRASSE fine istanbul", [3]),
        ("no such words here", []),
        (".*", []),
    ],
)
def test_search_rows_ignores_case_and_accents(
    query: str, expected_rows: list[int], finished_run: Run, tmp_path: Path
) -> None:
    page = search_rows(with_changed_rows(finished_run, tmp_path, with_accented_texts), query)
    assert row_numbers(page["rows"]) == expected_rows and page["total"] == len(expected_rows)


def test_search_rows_filters_and_pages(flipped: Run) -> None:
    frame = pd.read_parquet(flipped.evaluation)
    assert search_rows(flipped)["total"] == len(frame) == 40
    bad = search_rows(flipped, true="bad", max_rows=500)
    assert row_numbers(bad["rows"]) == (np.flatnonzero(frame.label == 0) + 1).tolist()
    wrong = search_rows(flipped, only_wrong=True)
    assert row_numbers(wrong["rows"]) == [4, 11, 22]
    assert row_numbers(search_rows(flipped, only_wrong=True, hardest_first=True)["rows"]) == [22, 11, 4]
    mixed = search_rows(flipped, true="good", predicted="bad")
    assert all(row["wrong"] and row["reason"] for row in mixed["rows"])
    assert search_rows(flipped)["rows"][0]["reason"] == ""
    pages = [row_numbers(search_rows(flipped, start=start, max_rows=15)["rows"]) for start in (0, 15, 30, 45)]
    assert sum(pages, []) == list(range(1, 41)) and pages[-1] == []
    assert row_numbers(search_rows(flipped, start=-5, max_rows=0)["rows"]) == [1]


def test_search_rows_finds_multi_label_rows_and_pairs(topics: Run, pairs: Run) -> None:
    topic_labels = np.stack(pd.read_parquet(topics.evaluation).label)
    assert search_rows(topics, true="drink")["total"] == int(topic_labels[:, 1].sum())
    assert search_rows(topics, true=NO_LABEL)["total"] == int((topic_labels.sum(-1) == 0).sum()) > 0
    second_text = pd.read_parquet(pairs.evaluation).text_pair[0]
    rows = search_rows(pairs, second_text)["rows"]
    assert rows and {row["text_pair"] for row in rows} == {second_text}


def test_review_with_invalid_filter_or_damaged_rows_raises_error(
    flipped: Run, stars: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="one of bad, good"):
        search_rows(flipped, true="great")
    with pytest.raises(ConfigError, match="predicts a number"):
        search_rows(stars, predicted="5")
    with pytest.raises(ConfigError, match="not right or wrong"):
        search_rows(stars, only_wrong=True)
    (flipped.evaluation).write_bytes(b"PAR1")
    for review in (hardest, search_rows, suspected_labels):
        with pytest.raises(RunError, match="'evaluation.parquet' of evaluation/ is damaged"):
            review(flipped)


def test_suspected_labels_lists_flipped_labels(flipped: Run) -> None:
    rows = suspected_labels(flipped)
    assert sorted(row_numbers(rows)) == [4, 11, 22]
    assert rows[0]["quality"] == min(row["quality"] for row in rows) < 0.001
    assert rows[0]["reason"].startswith(f"Labeled {rows[0]['true']} (below 0.1 %)")
    assert json.loads(json.dumps(rows)) == rows
    assert len(suspected_labels(flipped, max_rows=1)) == 1
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("used_labels", [[0], [1], [0, 1]])
def test_suspected_labels_with_unused_labels_succeeds(
    used_labels: list[int], finished_run: Run, tmp_path: Path
) -> None:
    """The classifier has three labels, and the rows have one or two of them."""

    def with_third_label(rows: pd.DataFrame) -> pd.DataFrame:
        rows = flip_labels_of_sure_model(rows)
        rows["logits"] = [np.append(raw, -9.0) for raw in rows.logits]
        return rows[rows.label.isin(used_labels)].reset_index(drop=True)

    run = with_changed_rows(finished_run, tmp_path, with_third_label)
    classifier = json.loads((run.adapter / "classifier.json").read_text(encoding="utf-8"))
    classifier["id2label"]["2"] = "so-so"
    change_json(run, "adapter/classifier.json", **classifier)
    assert len(suspected_labels(run)) == (3 if len(used_labels) == 2 else 0)
    assert {row["true"] for row in hardest(run)} <= {("bad", "good")[i] for i in used_labels}


@pytest.mark.parametrize("constant", [None, 0.0, 1.0])
def test_suspected_labels_of_multi_label_names_wrong_label(
    constant: float | None, topics: Run, tmp_path: Path
) -> None:
    def with_wrong_label(rows: pd.DataFrame) -> pd.DataFrame:
        labels = np.stack(rows.label)
        logits = np.where(labels == 1, 4.0, -4.0)
        labels[7, 0] = 1 - labels[7, 0]
        if constant is not None:
            labels[:, 2] = constant
        rows["label"], rows["logits"] = list(labels), list(logits)
        return rows

    run = with_changed_rows(topics, tmp_path, with_wrong_label)
    (row,) = suspected_labels(run)
    is_labeled = pd.read_parquet(run.evaluation).label[7][0]
    assert row["row"] == 8 and row["quality"] == pytest.approx(1 / (1 + np.exp(4)))
    assert f"food is {'given' if is_labeled else 'missing'}, and has" in row["reason"]


def test_suspected_labels_of_regression_lists_outliers(stars: Run, tmp_path: Path) -> None:
    def with_outlier(rows: pd.DataFrame, unit: float) -> pd.DataFrame:
        noise = np.random.default_rng(0).normal(size=len(rows)) / 10
        rows["logits"] = [[unit * (label + error)] for label, error in zip(rows.label, noise, strict=True)]
        rows["label"] *= unit
        rows.loc[4, "label"] += 9 * unit
        return rows

    for unit in (1.0, 1e6):
        run = with_changed_rows(stars, tmp_path / str(unit), lambda rows, unit=unit: with_outlier(rows, unit))
        most_suspect = suspected_labels(run)[0]
        assert most_suspect["row"] == 5 and most_suspect["quality"] < 1e-9
        assert "times the usual error" in most_suspect["reason"]


def test_suspected_labels_of_exact_regression_is_empty(stars: Run, tmp_path: Path) -> None:
    def with_exact_predictions(rows: pd.DataFrame) -> pd.DataFrame:
        rows["logits"] = [[label] for label in rows.label]
        return rows

    assert suspected_labels(with_changed_rows(stars, tmp_path, with_exact_predictions)) == []


def test_evaluation_loss_of_extreme_logits_is_finite_and_ordered(flipped: Run) -> None:
    evaluation = Evaluation.read(flipped)
    extreme = Evaluation(
        type(evaluation.rows)(
            evaluation.rows.texts, None, evaluation.rows.labels, evaluation.rows.logits * 1000
        ),
        evaluation.labels,
        evaluation.problem_type,
        evaluation.decision_rule,
    )
    assert np.isfinite(extreme.loss).all()
    assert np.argsort(-extreme.loss)[:3].tolist() == [21, 10, 3]
