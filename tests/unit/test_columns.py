"""Tests of inferred columns and problem type, and of settings that override them."""

from typing import Any

import pandas as pd
import pytest

from peft_core.config import TrainConfig
from peft_core.data.columns import MULTI, REGRESSION, SINGLE, Columns, infer_columns, label_order, labels_of
from peft_core.errors import DataError

TEXTS = [f"Ein langer Satz mit vielen Wörtern, Nummer {i}." for i in range(60)]


def infer(cells: dict[str, list], classes: dict | None = None, **settings: Any) -> Columns:
    frame = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in cells.items()})
    return infer_columns(TrainConfig.from_dict({"dataset_name": "x", **settings}), frame, classes or {})


def infer_problem_type(labels: list, **settings: Any) -> tuple[str, str | None]:
    columns = infer({"text": TEXTS[: len(labels)], "label": labels}, **settings)
    return columns.problem_type, columns.label_separator


def test_infer_columns_with_unknown_names_uses_content() -> None:
    table = {
        "Nr": [str(i) for i in range(60)],
        "Datum": [f"2026-01-{i % 28 + 1:02}" for i in range(60)],
        "Kommentar": TEXTS,
        "Kategorie": ["gut", "schlecht", "übel"] * 20,
    }
    columns = infer(table)
    assert (columns.text, columns.label, columns.text_pair) == ("Kommentar", "Kategorie", None)
    assert columns.guessed == ("text_column", "label_column", "problem_type")


def test_infer_columns_prefers_settings_then_known_names() -> None:
    table = {
        "Title": TEXTS,
        "Review": ["kurz"] * 60,
        "Stars": ["1", "2", "5"] * 20,
        "kind": ["a", "b"] * 30,
    }
    columns = infer(table)
    assert (columns.text, columns.label) == ("Review", "Stars")
    assert infer(table, text_column="Title").text == "Title"
    assert infer(table, label_column="kind").label == "kind"
    assert infer({"title": ["kurz"] * 60, "abstract": TEXTS, "label": ["a", "b"] * 30}).text == "abstract"


def test_infer_columns_without_header_uses_content() -> None:
    columns = infer({"column 1": ["pos", "neg"] * 30, "column 2": TEXTS})
    assert (columns.text, columns.label) == ("column 2", "column 1")


def test_infer_columns_recognizes_pairs_only_by_name() -> None:
    table = {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": ["a", "b"] * 30}
    assert (infer(table).text, infer(table).text_pair) == ("premise", "hypothesis")
    assert infer(table, text_column="hypothesis").text_pair is None
    assert infer(table, text_column="hypothesis", text_pair_column="premise").text_pair == "premise"


@pytest.mark.parametrize(
    "labels, expected",
    [
        (["pos", "neg"] * 30, (SINGLE, None)),
        ([str(i % 5 + 1) for i in range(60)], (SINGLE, None)),
        ([i % 5 + 1 for i in range(60)], (SINGLE, None)),
        (["007", "011", "013"] * 20, (SINGLE, None)),
        ([f"{i / 7:.2f}" for i in range(60)], (REGRESSION, None)),
        ([f"{i},5" for i in range(60)], (REGRESSION, None)),
        (list(range(60)), (REGRESSION, None)),
        ([["a", "b"], ["b"], []] * 20, (MULTI, None)),
        (["food|price", "price", "food|staff", "staff|price|food"] * 15, (MULTI, "|")),
        (["food, price", "price, staff", "food, staff", "staff, price, food"] * 15, (MULTI, ",")),
        (["a", "b", "c", "d", "a;b", "b;c", "c;d", "a;c;d", "b;d", "a;d"] * 6, (MULTI, ";")),
        (["Sports, leisure", "Home, garden"] * 30, (SINGLE, None)),
    ],
)
def test_problem_type_is_inferred_from_labels(labels: list, expected: tuple) -> None:
    assert infer_problem_type(labels) == expected


def test_problem_type_setting_overrides_inference() -> None:
    stars = [str(i % 5 + 1) for i in range(60)]
    assert infer_problem_type(stars, problem_type=REGRESSION) == (REGRESSION, None)
    assert infer_problem_type(["food|price"] * 60, problem_type=SINGLE) == (SINGLE, None)
    assert infer_problem_type(["food/price", "food"] * 30, label_separator="/") == (MULTI, "/")
    assert infer_problem_type(["pos"] * 60, problem_type=MULTI) == (MULTI, None)
    assert infer({"text": TEXTS, "label": [0, 1] * 30}, {"label": ("a", "b")}).problem_type == SINGLE


@pytest.mark.parametrize(
    "table, settings, words",
    [
        ({"a": TEXTS}, {}, "no label_column"),
        ({"a": [1, 2], "b": [3, 4]}, {}, "no text_column"),
        ({"text": TEXTS, "label": ["a", "b"] * 30}, {"text_column": "words"}, "no text_column words; it has"),
        ({"text": [1, 2], "label": ["a", "b"]}, {"text_column": "text"}, "holds numbers"),
        (
            {"text": TEXTS, "label": ["a", "b"] * 30},
            {"text_column": "text", "label_column": "text"},
            "cannot be the text column",
        ),
        ({"text": TEXTS, "label": [["a"], ["b"]] * 30}, {"problem_type": SINGLE}, "lists"),
    ],
)
def test_infer_columns_of_unusable_table_raises_one_sentence(table: dict, settings: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        infer(table, **settings)


def test_labels_of_converts_cells_by_problem_type() -> None:
    single, several, number = (
        Columns("t", None, "y", task, sep, ())
        for task, sep in ((SINGLE, None), (MULTI, "|"), (REGRESSION, None))
    )
    assert labels_of([" a ", "01", 1.0, True, "", None], single, None) == [
        " a ",
        "01",
        "1",
        "true",
        None,
        None,
    ]
    assert labels_of([0, 1, -1], single, ("bad", "good")) == ["bad", "good", ""]
    assert labels_of(["a | b|a", ["x", 1], [], ""], several, None) == [("a", "b"), ("x", "1"), (), None]
    assert labels_of(["3,5", 2, "-1e-3", "much", ""], number, None) == [3.5, 2.0, -0.001, "much", None]


def test_label_order_is_numeric_or_alphabetical() -> None:
    assert label_order(["10", "9", "2", "9"], None) == (("2", "9", "10"), False)
    assert label_order(["01", "10", "02"], None) == (("01", "02", "10"), True)
    assert label_order(["b"], ("b", "a")) == (("b", "a"), True)
