"""Label lists in cells: parsing of lists that JSON, Python or NumPy wrote as text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_core.data.columns import MULTI, Columns, labels_of
from peft_core.data.label_lists import are_lists, as_list, indicator_width

labels = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
SEVERAL = Columns("text", None, "labels", MULTI, None, ())


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.lists(labels, unique=True), min_size=1))
def test_label_lists_written_as_json_or_python_round_trip(rows: list[list[str]]) -> None:
    for write in (json.dumps, repr, lambda row: json.dumps(row, ensure_ascii=False)):
        cells = [write(row) for row in rows]
        assert labels_of(cells, SEVERAL, None) == [tuple(row) for row in rows]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.lists(st.sampled_from(["sound", "the price", "it's", "a, b"])), min_size=1))
def test_label_lists_written_by_numpy_round_trip(rows: list[list[str]]) -> None:
    cells = [str(np.array(row, dtype=object)) for row in rows]
    assert [as_list(cell) for cell in cells] == rows


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        ("[]", []),
        (" [ ] ", []),
        ("[1, 0, 1]", [1, 0, 1]),
        ("[1 0 1]", [1, 0, 1]),
        ("[True, False]", [True, False]),
        ("[sound, good price]", ["sound", "good price"]),
        ("['a', None, nan]", ["a", None, None]),
        ("['a',]", ["a"]),
        (["a", 1], ["a", 1]),
        (r"['C:\dir']", [r"C:\dir"]),
        ("['a'", None),
        ("['a' b, 'c']", None),
        ("[[1], [2]]", None),
        ('{"a": 1}', None),
        ("a, b", None),
        ("", None),
        (3, None),
        (None, None),
        ("[" * 5000 + "]" * 5000, None),
    ],
)
def test_as_list_returns_items_or_none(cell: object, items: list | None) -> None:
    assert as_list(cell) == items


def test_are_lists_rejects_single_words_in_brackets() -> None:
    assert are_lists(["['a', 'b']", "[]"]) and are_lists(["[]"]) and are_lists(["[a, b]", "[a]"])
    assert not are_lists(["[NEG]", "[POS]"]) and not are_lists(["a", "b"]) and not are_lists([])


def test_indicator_width_needs_lists_of_one_length_with_repeats() -> None:
    assert indicator_width(["[1, 0, 1]", "[0, 0, 0]"]) == 3
    assert indicator_width([[1, 0, 0], [0, 0, 1]]) == 3
    assert indicator_width(["[0, 1]", "[1, 0]"]) is None, "labels called 0 and 1"
    assert indicator_width(["[1, 0, 1]", "[1, 0]"]) is None
    assert indicator_width(["[1, 2, 1]"]) is None and indicator_width([]) is None
