"""The rows a run was judged on: its hardest mistakes, the search over them, and labels that may be wrong."""

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


def changed(run: Run, folder: Path, change: Change) -> Run:
    """A copy of a run whose test rows are other ones."""
    copy = Run(shutil.copytree(run.folder, folder / run.run_id))
    change(pd.read_parquet(copy.evaluation)).to_parquet(copy.evaluation)
    reseal(copy.results)
    return copy


def sure_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of two labels that the model is sure and right of, with three labels turned round."""
    rows["logits"] = [
        np.where(np.arange(2) == label, 4.0 + i / 100, -4.0) for i, label in enumerate(rows.label)
    ]
    rows.loc[FLIPPED, "label"] = 1 - rows.loc[FLIPPED, "label"]
    return rows


@pytest.fixture
def flipped(finished_run: Run, tmp_path: Path) -> Run:
    return changed(finished_run, tmp_path, sure_rows)


def numbers(rows: list[dict]) -> list[int]:
    return [row["row"] for row in rows]


def test_the_hardest_rows_are_the_wrong_ones_by_their_loss(flipped: Run) -> None:
    rows = hardest(flipped)
    assert numbers(rows) == [22, 11, 4]
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(8.21 + np.log1p(np.exp(-8.21)))
    held = pd.read_parquet(flipped.evaluation).iloc[21]
    assert rows[0]["text"] == held.text and rows[0]["text_pair"] is None
    assert {rows[0]["true"], rows[0]["predicted"]} == {"bad", "good"}
    assert rows[0]["true"] == ("bad", "good")[held.label]
    assert rows[0]["confidence"] == pytest.approx(1 / (1 + np.exp(-8.21)))
    assert f"The model says {rows[0]['predicted']} (above 99.9 %)" in rows[0]["reason"]
    assert json.loads(json.dumps(rows)) == rows
    assert numbers(hardest(flipped, max_rows=2)) == [22, 11]


def test_rows_are_judged_at_the_temperature_and_thresholds_chosen(flipped: Run) -> None:
    before = hardest(flipped)[0]
    decision = DecisionRule(temperature=4.0, thresholds=(0.02, 0.98))
    decision.save(flipped, ("bad", "good"))
    after = hardest(flipped)
    assert after[0]["loss"] < before["loss"]
    assert 0.85 < max(row["confidence"] for row in after) < 0.9
    assert {row["predicted"] for row in after} == {"bad"}
    assert len(after) > len(FLIPPED)


def test_the_largest_errors_of_numbers(stars: Run, tmp_path: Path) -> None:
    def far(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[5, "label"] += 40
        return rows

    rows = hardest(changed(stars, tmp_path, far), max_rows=3)
    assert rows[0]["row"] == 6
    assert rows[0]["reason"].endswith("too low.")
    assert rows[0]["loss"] == pytest.approx(
        abs(float(rows[0]["true"]) - float(rows[0]["predicted"])), abs=0.02
    )
    assert rows[0]["confidence"] is None and not rows[0]["wrong"]


def test_of_several_labels_the_reason_names_those_that_differ(topics: Run, tmp_path: Path) -> None:
    def wrong(rows: pd.DataFrame) -> pd.DataFrame:
        rows["logits"] = [np.where(np.asarray(label) == 1, 5.0, -5.0) for label in rows.label]
        rows.at[2, "label"] = 1 - np.asarray(rows.label[2])
        return rows

    run = changed(topics, tmp_path, wrong)
    (row,) = hardest(run)
    assert row["row"] == 3 and row["loss"] == pytest.approx(5 + np.log1p(np.exp(-5)))
    held = np.asarray(pd.read_parquet(run.evaluation).label[2])
    for name, given in zip(TOPICS, held, strict=True):
        side = "leaves out" if given else "gives"
        assert side in row["reason"] and name in row["reason"].split(side)[1]
    assert row["true"] == (", ".join(n for n, g in zip(TOPICS, held, strict=True) if g) or NO_LABEL)


def test_validation_rows_are_reviewed_too(finished_run: Run) -> None:
    assert search_rows(finished_run, part="validation")["total"] == len(
        pd.read_parquet(finished_run.validation)
    )
    with pytest.raises(RunError, match="test or validation"):
        search_rows(finished_run, part="../test")


def texts_of(rows: pd.DataFrame) -> pd.DataFrame:
    rows.loc[:3, "text"] = [
        "Crème BRÛLÉE, très bon",
        "creme only",
        "İstanbul straße ﬁne",
        "a\tb CREME brulee",
    ]
    return rows


@pytest.mark.parametrize(
    "query, found",
    [
        ("creme brulee", [1, 4]),
        ("BRÛLÉE crème", [1, 4]),
        ("crem", [1, 2, 4]),
        ("STRASSE fine istanbul", [3]),
        ("no such words here", []),
        (".*", []),
    ],
)
def test_search_minds_neither_case_nor_accents(
    query: str, found: list[int], finished_run: Run, tmp_path: Path
) -> None:
    answer = search_rows(changed(finished_run, tmp_path, texts_of), query)
    assert numbers(answer["rows"]) == found and answer["total"] == len(found)


def test_rows_are_filtered_and_paged(flipped: Run) -> None:
    frame = pd.read_parquet(flipped.evaluation)
    assert search_rows(flipped)["total"] == len(frame) == 40
    bad = search_rows(flipped, true="bad", max_rows=500)
    assert numbers(bad["rows"]) == (np.flatnonzero(frame.label == 0) + 1).tolist()
    wrong = search_rows(flipped, only_wrong=True)
    assert numbers(wrong["rows"]) == [4, 11, 22]
    assert numbers(search_rows(flipped, only_wrong=True, hardest_first=True)["rows"]) == [22, 11, 4]
    mixed = search_rows(flipped, true="good", predicted="bad")
    assert all(row["wrong"] and row["reason"] for row in mixed["rows"])
    assert search_rows(flipped)["rows"][0]["reason"] == ""
    pages = [numbers(search_rows(flipped, start=start, max_rows=15)["rows"]) for start in (0, 15, 30, 45)]
    assert sum(pages, []) == list(range(1, 41)) and pages[-1] == []
    assert numbers(search_rows(flipped, start=-5, max_rows=0)["rows"]) == [1]


def test_several_labels_and_pairs_are_searched(topics: Run, pairs: Run) -> None:
    held = np.stack(pd.read_parquet(topics.evaluation).label)
    assert search_rows(topics, true="drink")["total"] == int(held[:, 1].sum())
    assert search_rows(topics, true=NO_LABEL)["total"] == int((held.sum(-1) == 0).sum()) > 0
    second = pd.read_parquet(pairs.evaluation).text_pair[0]
    rows = search_rows(pairs, second)["rows"]
    assert rows and {row["text_pair"] for row in rows} == {second}


def test_what_cannot_be_asked_gets_one_sentence(flipped: Run, stars: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of bad, good"):
        search_rows(flipped, true="great")
    with pytest.raises(ConfigError, match="predicts a number"):
        search_rows(stars, predicted="5")
    with pytest.raises(ConfigError, match="never simply wrong"):
        search_rows(stars, only_wrong=True)
    (flipped.evaluation).write_bytes(b"PAR1")
    for ask in (hardest, search_rows, suspected_labels):
        with pytest.raises(RunError, match="'evaluation.parquet' of evaluation/ is damaged"):
            ask(flipped)


def test_turned_labels_are_suspected(flipped: Run) -> None:
    rows = suspected_labels(flipped)
    assert sorted(numbers(rows)) == [4, 11, 22]
    assert rows[0]["quality"] == min(row["quality"] for row in rows) < 0.001
    assert rows[0]["reason"].startswith(f"Labelled {rows[0]['true']} (below 0.1 %)")
    assert json.loads(json.dumps(rows)) == rows
    assert len(suspected_labels(flipped, max_rows=1)) == 1
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("kept", [[0], [1], [0, 1]])
def test_labels_that_no_row_has_are_no_fault(kept: list[int], finished_run: Run, tmp_path: Path) -> None:
    """The classifier knows three labels, and the rows hold one or two of them."""

    def three(rows: pd.DataFrame) -> pd.DataFrame:
        rows = sure_rows(rows)
        rows["logits"] = [np.append(raw, -9.0) for raw in rows.logits]
        return rows[rows.label.isin(kept)].reset_index(drop=True)

    run = changed(finished_run, tmp_path, three)
    held = json.loads((run.adapter / "classifier.json").read_text(encoding="utf-8"))
    held["id2label"]["2"] = "so-so"
    change_json(run, "adapter/classifier.json", **held)
    assert len(suspected_labels(run)) == (3 if len(kept) == 2 else 0)
    assert {row["true"] for row in hardest(run)} <= {("bad", "good")[i] for i in kept}


@pytest.mark.parametrize("constant", [None, 0.0, 1.0])
def test_of_several_labels_the_doubted_one_is_named(
    constant: float | None, topics: Run, tmp_path: Path
) -> None:
    def wrong(rows: pd.DataFrame) -> pd.DataFrame:
        labels = np.stack(rows.label)
        logits = np.where(labels == 1, 4.0, -4.0)
        labels[7, 0] = 1 - labels[7, 0]
        if constant is not None:
            labels[:, 2] = constant
        rows["label"], rows["logits"] = list(labels), list(logits)
        return rows

    run = changed(topics, tmp_path, wrong)
    (row,) = suspected_labels(run)
    given = pd.read_parquet(run.evaluation).label[7][0]
    assert row["row"] == 8 and row["quality"] == pytest.approx(1 / (1 + np.exp(4)))
    assert f"food is {'given' if given else 'missing'}, and has" in row["reason"]


def test_numbers_far_from_the_usual_error_are_suspected(stars: Run, tmp_path: Path) -> None:
    def wrong(rows: pd.DataFrame, unit: float) -> pd.DataFrame:
        noise = np.random.default_rng(0).normal(size=len(rows)) / 10
        rows["logits"] = [[unit * (label + error)] for label, error in zip(rows.label, noise, strict=True)]
        rows["label"] *= unit
        rows.loc[4, "label"] += 9 * unit
        return rows

    for unit in (1.0, 1e6):
        run = changed(stars, tmp_path / str(unit), lambda rows, unit=unit: wrong(rows, unit))
        first = suspected_labels(run)[0]
        assert first["row"] == 5 and first["quality"] < 1e-9
        assert "times the usual error" in first["reason"]


def test_equal_numbers_are_no_fault(stars: Run, tmp_path: Path) -> None:
    def same(rows: pd.DataFrame) -> pd.DataFrame:
        rows["logits"] = [[label] for label in rows.label]
        return rows

    assert suspected_labels(changed(stars, tmp_path, same)) == []


def test_a_loss_beyond_any_probability_still_ranks(flipped: Run) -> None:
    judged = Evaluation.read(flipped)
    extreme = Evaluation(
        type(judged.rows)(judged.rows.texts, None, judged.rows.labels, judged.rows.logits * 1000),
        judged.labels,
        judged.problem_type,
        judged.decision_rule,
    )
    assert np.isfinite(extreme.loss).all()
    assert np.argsort(-extreme.loss)[:3].tolist() == [21, 10, 3]
