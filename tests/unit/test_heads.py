"""Matching the rows of a base model's head to labels."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_core.errors import ModelError
from peft_core.models.heads import HeadChange, are_generic, head_rows, match_by_name
from peft_core.problem_types import REGRESSION, SINGLE

STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]


@pytest.mark.parametrize(
    ("labels", "head", "rows"),
    [
        (["positive", "negative"], ["negative", "positive"], (1, 0)),
        (["negative", "positive"], ["NEGATIVE", " Positive "], (0, 1)),
        (["1 star", "2 star", "3 stars", "4 stars", "5 stars"], STARS, (0, 1, 2, 3, 4)),
        (["5", "4", "3", "2", "1"], STARS, (4, 3, 2, 1, 0)),
        (["1.0", "2.0", "3.0", "4.0", "5.0"], STARS, (0, 1, 2, 3, 4)),
        (["0", "1"], ["LABEL_0", "LABEL_1"], (0, 1)),
        (["sci-tech", "sports"], ["Sport", "Sci Tech"], (1, 0)),
        (["bad", "good"], ["negative", "positive"], None),
        (["bad", "good"], ["LABEL_0", "LABEL_1"], None),
        (["0", "1"], ["negative", "positive"], None),
        (["0", "1", "2", "3", "4"], STARS, None),
        (["grade 1", "grade 2"], ["1 star", "2 stars"], None),
        (["C", "C++"], ["c++", "c"], (1, 0)),
        (["a", "b"], ["a", "b", "c"], None),
    ],
)
def test_match_by_name_finds_the_row_of_each_label(
    labels: list[str], head: list[str], rows: tuple[int, ...] | None
) -> None:
    assert match_by_name(labels, head) == rows


@settings(max_examples=200, deadline=None)
@given(
    names=st.lists(
        st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=2, unique_by=str.casefold
    ),
    seed=st.integers(0, 99),
)
def test_match_by_name_shuffled_head_restores_order(names: list[str], seed: int) -> None:
    head = random.Random(seed).sample(names, len(names))
    rows = match_by_name(names, head)
    if rows is not None:
        assert [head[row] for row in rows] == names


def test_head_rows_unmatched_names_raises() -> None:
    labels, head = ("bad", "good"), ("NEG", "POS")
    with pytest.raises(ModelError, match="'NEG', 'POS', and the data has 'bad', 'good'.*by_order.*fresh"):
        head_rows(labels, head, SINGLE, "by_name", "base")
    assert head_rows(labels, head, SINGLE, "by_order", "base") == (0, 1)
    assert head_rows(labels, head, SINGLE, "fresh", "base") is None
    assert head_rows((), ("LABEL_0",), REGRESSION, "by_name", "base") == (0,)


def test_head_change_round_trips_as_json_types() -> None:
    for change in (HeadChange("classifier", (1, 0)), HeadChange("classifier.out_proj", None)):
        assert HeadChange.from_dict(change.to_dict()) == change
    assert are_generic(["LABEL_0", "LABEL_1"]) and not are_generic(["LABEL_0", "good"])
