"""Text pairs that share a text: grouping of rows across splits, and leakage that remains."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_core.config import TrainConfig
from peft_core.data.columns import SINGLE
from peft_core.data.inspection import inspect
from peft_core.data.labelled import LabeledSplits, load_labeled_splits
from peft_core.data.pairs import BOTH, FIRST, PAIR, group_pairs, group_strata
from peft_core.data.splits import hold_out
from peft_core.data.text_keys import pair_key, text_key

CASES = Path(__file__).parents[1] / "cases"
quick = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def write(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    pd.DataFrame(rows, columns=["premise", "hypothesis", "label"]).to_csv(path, index=False)
    return path


def texts_of(data: LabeledSplits, column: str) -> list[set[str]]:
    """The texts of training, validation and test rows."""
    return [set(map(text_key, rows[column][:])) for rows in (data.train, data.validation, data.eval)]


def load(path: Path, **changes: object) -> LabeledSplits:
    return load_labeled_splits(dataclasses.replace(TrainConfig(), dataset_name=str(path), **changes))


@quick
@given(
    pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=80),
    seed=st.integers(0, 99),
)
def test_hold_out_by_groups_keeps_each_text_on_one_side(pairs: list[tuple[int, int]], seed: int) -> None:
    keys = [pair_key(f"first {first}", f"second {second}") for first, second in pairs]
    grouping = group_pairs(keys)
    labels = [["a", "b"][second % 2] for _, second in pairs]
    held_out = set(hold_out(grouping.groups, group_strata(grouping.groups, labels), 0.2, seed, at_least=1))
    sides = [[pair for i, pair in enumerate(pairs) if (i in held_out) is side] for side in (True, False)]
    firsts, seconds = ([{pair[place] for pair in side} for side in sides] for place in (0, 1))
    if grouping.by in (BOTH, FIRST):
        assert not firsts[0] & firsts[1]
    if grouping.by == BOTH:
        assert not seconds[0] & seconds[1]
    if grouping.by == PAIR:
        assert not {*sides[0]} & {*sides[1]}


def test_group_pairs_joins_rows_through_other_rows() -> None:
    keys = [
        pair_key(*pair) for pair in [("a", "1"), ("b", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]
    ]
    grouping = group_pairs(keys)
    assert grouping.by == BOTH
    assert len(set(grouping.groups[:3])) == 1 and len(set(grouping.groups)) == 4
    assert group_pairs(keys[::-1]).groups == grouping.groups[::-1], "names do not depend on the order"


def test_group_pairs_with_zero_characters_joins_rows_that_share_a_text() -> None:
    """A pair key used to be one string, split at its first zero character."""
    pairs = [("a\0b", "shared"), ("c", "shared"), ("a", "b\0d"), ("e", "1"), ("f", "2"), ("g", "3")]
    grouping = group_pairs([pair_key(*pair) for pair in pairs])
    assert grouping.by == BOTH
    assert grouping.groups[0] == grouping.groups[1] != grouping.groups[2]


def test_inspect_of_pairs_counts_whole_pairs(tmp_path: Path) -> None:
    rows = [(f"Premise {i}", f"Hypothesis {i}", ["yes", "no"][i % 2]) for i in range(40)]
    twice = [
        ("PREMISE 2", "Hypothesis 2", "no"),
        ("premise 3", "hypothesis 3", "no"),
        ("Premise 2", "x", "no"),
    ]
    write(tmp_path / "train.csv", [*rows, *twice])
    write(tmp_path / "test.csv", [("premise 4", "hypothesis 4", "yes"), ("New", "Other", "no")])
    findings = inspect(TrainConfig(dataset_name=str(tmp_path)))["findings"]
    counts = {finding["kind"]: finding["count"] for finding in findings}
    assert (counts["conflicts"], counts["duplicates"], counts["leakage"]) == (2, 1, 1)
    dropped = load(tmp_path, remedies=("conflicts", "duplicates", "leakage")).record["dropped"]
    assert {entry["remedy"]: entry["rows"] for entry in dropped} == {
        "conflicts": 2,
        "duplicates": 1,
        "leakage": 1,
    }


def test_group_pairs_falls_back_to_the_first_text_and_to_the_pair() -> None:
    aspects = [pair_key(f"text {i}", aspect) for i in range(20) for aspect in ("food", "price")]
    assert group_pairs(aspects).by == FIRST
    assert group_pairs([pair_key("one", f"{i}") for i in range(20)]).by == PAIR


def test_group_strata_takes_the_rarest_label_of_a_group() -> None:
    assert group_strata(["x", "x", "y", "y"], ["often", "rare", "often", "often"]) == [
        "rare", "rare", "often", "often",
    ]  # fmt: skip


def test_pairs_of_one_premise_stay_on_one_side() -> None:
    data = load(CASES / "pairs_one_premise.csv")
    for column in ("text", "text_pair"):
        train, validation, test = texts_of(data, column)
        assert not train & test and not train & validation and not validation & test
    assert data.record["grouped_by"] == "both"
    assert [len(rows) for rows in (data.train, data.validation, data.eval)] == [84, 12, 24]
    findings = inspect(TrainConfig(dataset_name=str(CASES / "pairs_one_premise.csv")))["findings"]
    assert "shared_texts" not in {finding["kind"] for finding in findings}


@pytest.fixture
def aspects(tmp_path: Path) -> Path:
    rows = [
        (f"The place number {i} was fine.", a, ["yes", "no"][i % 2])
        for i in range(60)
        for a in ("food", "price")
    ]
    return write(tmp_path / "aspects.csv", rows)


def test_inspect_pairs_with_common_second_texts_finds_shared_texts(aspects: Path) -> None:
    data = load(aspects)
    train, _, test = texts_of(data, "text")
    assert not train & test and data.record["grouped_by"] == "first"
    inspected = inspect(TrainConfig(dataset_name=str(aspects)))
    finding = next(each for each in inspected["findings"] if each["kind"] == "shared_texts")
    assert "rows with the same first text are held out together" in finding["sentence"]
    assert (finding["remedy"], finding["count"]) == ("shared_texts", 120)


def test_inspect_splits_that_share_premises_finds_a_remedy(tmp_path: Path) -> None:
    rows = [(f"Premise {i // 2}", f"Hypothesis {i}", ["yes", "no"][i % 2]) for i in range(40)]
    write(tmp_path / "train.csv", rows)
    write(
        tmp_path / "test.csv",
        [("premise 3", "Other 1", "yes"), ("New.", "HYPOTHESIS 9", "no"), ("N", "M", "yes")],
    )
    config = TrainConfig(dataset_name=str(tmp_path))
    finding = next(each for each in inspect(config)["findings"] if each["kind"] == "shared_texts")
    assert finding["count"] == 3 and finding["remedy"] == "shared_texts"
    data = load(tmp_path, remedies=("shared_texts",))
    for column in ("text", "text_pair"):
        train, validation, test = texts_of(data, column)
        assert not train & test and not train & validation and not validation & test
    dropped = {entry["split"]: entry["rows"] for entry in data.record["dropped"]}
    assert dropped["train"] + dropped.get("validation", 0) >= 3


def test_remedy_that_leaves_no_row_is_refused(tmp_path: Path) -> None:
    rows = [("One premise", f"Hypothesis {i}", ["yes", "no"][i % 2]) for i in range(40)]
    write(tmp_path / "a.csv", rows)
    assert load(tmp_path / "a.csv").record["grouped_by"] == "pair"
    with pytest.raises(Exception, match="Every training row shares a text .* leaves none"):
        load(tmp_path / "a.csv", remedies=("shared_texts",))


def test_rare_label_in_mixed_groups_is_in_train_and_test(tmp_path: Path) -> None:
    rows = []
    for i in range(50):
        rows.append((f"Premise {i}", f"Hypothesis {i} a", "usual"))
        rows.append((f"Premise {i}", f"Hypothesis {i} b", "rare" if i < 4 else "usual"))
    data = load(write(tmp_path / "a.csv", rows))
    for side in (data.train, data.eval):
        assert set(side["label"][:]) == {0, 1}
    assert data.label_names == ("rare", "usual") and data.problem_type == SINGLE
