"""What is guessed of a table: text, label, task; and that a setting beats every guess."""

from typing import Any

import pandas as pd
import pytest

from peft_core.config import TrainConfig
from peft_core.data.columns import MULTI, REGRESSION, SINGLE, Columns, infer_columns, label_order, labels_of
from peft_core.errors import DataError

TEXTS = [f"Ein langer Satz mit vielen Wörtern, Nummer {i}." for i in range(60)]


def choose(cells: dict[str, list], classes: dict | None = None, **settings: Any) -> Columns:
    frame = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in cells.items()})
    return infer_columns(TrainConfig.from_dict({"dataset_name": "x", **settings}), frame, classes or {})


def kind(labels: list, **settings: Any) -> tuple[str, str | None]:
    found = choose({"text": TEXTS[: len(labels)], "label": labels}, **settings)
    return found.problem_type, found.label_separator


def test_columns_in_another_language_are_found_by_what_they_hold() -> None:
    table = {
        "Nr": [str(i) for i in range(60)],
        "Datum": [f"2026-01-{i % 28 + 1:02}" for i in range(60)],
        "Kommentar": TEXTS,
        "Kategorie": ["gut", "schlecht", "übel"] * 20,
    }
    found = choose(table)
    assert (found.text, found.label, found.text_pair) == ("Kommentar", "Kategorie", None)
    assert found.guessed == ("text_column", "label_column", "problem_type")


def test_known_names_come_first_and_settings_before_them() -> None:
    table = {
        "Title": TEXTS,
        "Review": ["kurz"] * 60,
        "Stars": ["1", "2", "5"] * 20,
        "kind": ["a", "b"] * 30,
    }
    found = choose(table)
    assert (found.text, found.label) == ("Review", "Stars")
    assert choose(table, text_column="Title").text == "Title"
    assert choose(table, label_column="kind").label == "kind"
    assert choose({"title": ["kurz"] * 60, "abstract": TEXTS, "label": ["a", "b"] * 30}).text == "abstract"


def test_two_columns_without_a_header() -> None:
    found = choose({"column 1": ["pos", "neg"] * 30, "column 2": TEXTS})
    assert (found.text, found.label) == ("column 2", "column 1")


def test_a_pair_is_known_by_its_names_alone() -> None:
    table = {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": ["a", "b"] * 30}
    assert (choose(table).text, choose(table).text_pair) == ("premise", "hypothesis")
    assert choose(table, text_column="hypothesis").text_pair is None
    assert choose(table, text_column="hypothesis", text_pair_column="premise").text_pair == "premise"


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
def test_the_task_is_guessed_from_the_labels(labels: list, expected: tuple) -> None:
    assert kind(labels) == expected


def test_a_setting_beats_the_guess_of_the_task() -> None:
    stars = [str(i % 5 + 1) for i in range(60)]
    assert kind(stars, problem_type=REGRESSION) == (REGRESSION, None)
    assert kind(["food|price"] * 60, problem_type=SINGLE) == (SINGLE, None)
    assert kind(["food/price", "food"] * 30, label_separator="/") == (MULTI, "/")
    assert kind(["pos"] * 60, problem_type=MULTI) == (MULTI, None)
    assert choose({"text": TEXTS, "label": [0, 1] * 30}, {"label": ("a", "b")}).problem_type == SINGLE


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
            "cannot be the text and",
        ),
        ({"text": TEXTS, "label": [["a"], ["b"]] * 30}, {"problem_type": SINGLE}, "lists"),
    ],
)
def test_what_cannot_be_chosen_is_one_sentence(table: dict, settings: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        choose(table, **settings)


def test_labels_by_task() -> None:
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


def test_label_order_is_that_of_numbers_or_of_words() -> None:
    assert label_order(["10", "9", "2", "9"], None) == (("2", "9", "10"), False)
    assert label_order(["01", "10", "02"], None) == (("01", "02", "10"), True)
    assert label_order(["b"], ("b", "a")) == (("b", "a"), True)
