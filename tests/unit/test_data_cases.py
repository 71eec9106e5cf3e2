"""Regression tests: files that were once read incorrectly, and more files of each kind."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_data import write_csv
from tiny import make_tiny_bert

from peft_core.config import TrainConfig
from peft_core.data.inspection import inspect
from peft_core.data.labelled import LabeledSplits, expected_num_labels, load_labeled_splits
from peft_core.data.preparing import prepare_rows
from peft_core.errors import DataError, ModelError
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.service import tasks
from peft_core.views.data import data_facts, data_findings

CASES = Path(__file__).parents[1] / "cases"


def config(name: str | Path, **changes: Any) -> TrainConfig:
    return TrainConfig.from_dict({"dataset_name": str(CASES / name), **changes})


def load(name: str | Path, **changes: Any) -> LabeledSplits:
    return load_labeled_splits(config(name, **changes))


def by_text(name: str | Path, **changes: Any) -> dict[str, Any]:
    """Return the label of each text, as prepared for training."""
    frames = prepare_rows(config(name, **changes)).frames.values()
    return {text: label for rows in frames for text, label in zip(rows["text"], rows["label"], strict=True)}


def findings(name: str | Path, **changes: Any) -> dict[str, dict[str, Any]]:
    inspection = inspect(config(name, **changes))
    assert json.loads(json.dumps(inspection)) == inspection
    return {finding["kind"]: finding for finding in inspection["findings"]}


def test_thousands_csv_reads_the_comma_as_a_thousands_separator() -> None:
    labels = by_text("thousands.csv")
    prices = [labels[f"a {product}, offer 0"] for product in ("bicycle", "small car", "chair", "pen")]
    assert prices == [1200, 12500, 950, 1.5]
    assert load("thousands.csv").problem_type == REGRESSION


def test_tausender_csv_reads_the_point_as_a_thousands_separator() -> None:
    labels = by_text("tausender.csv")
    prices = [labels[f"ein {product}, Angebot 0"] for product in ("Fahrrad", "Auto", "Stuhl", "Stift")]
    assert prices == [1200, 12500, 950, 1.5]
    facts = data_facts(inspect(config("tausender.csv")))
    assert "Decimal mark: Comma, as in 1.234,5 (guessed)" in facts


def test_ambiguous_numbers_csv_asks_for_the_decimal_mark() -> None:
    finding = findings("ambiguous_numbers.csv")["numbers"]
    assert (finding["setting"], finding["blocks"]) == ("decimal_mark", True)
    assert "'1,100' is 1100 with a decimal point, 1.1 with a decimal comma" in finding["sentence"]
    assert "1,100: 1100 or 1.1" in data_findings([finding])
    with pytest.raises(DataError, match="Choose the decimal mark"):
        load("ambiguous_numbers.csv")
    assert by_text("ambiguous_numbers.csv", decimal_mark="point")["item 0 of the list"] == 1100
    assert by_text("ambiguous_numbers.csv", decimal_mark="comma")["item 0 of the list"] == 1.1
    assert "numbers" not in findings("ambiguous_numbers.csv", decimal_mark="comma")


def test_lists_in_cells_csv_is_multi_label() -> None:
    data = load("lists_in_cells.csv")
    assert (data.problem_type, set(data.label_names)) == (MULTI, {"sound", "price"})
    labels = by_text("lists_in_cells.csv")
    assert labels["sturdy and quiet, would buy again (0)"] == ("sound", "price")
    assert labels["stopped working after a day (0)"] == ()


def test_zero_one_columns_csv_is_multi_label() -> None:
    data = load("zero_one_columns.csv")
    assert (data.problem_type, data.label_names) == (MULTI, ("sound", "price", "service"))
    labels = by_text("zero_one_columns.csv")
    assert labels["sturdy and quiet, would buy again (0)"] == ("sound", "price")
    assert labels["loud, slow and far too hot (3)"] == ()
    inspection = inspect(config("zero_one_columns.csv"))
    assert inspection["in_force"]["label_columns"] == ["sound", "price", "service"]
    assert "Label columns: sound, price, service (guessed)" in data_facts(inspection)
    assert findings("zero_one_columns.csv")["label_columns"]["setting"] == "label_columns"


def test_zero_one_columns_csv_label_settings_select_columns() -> None:
    single = load("zero_one_columns.csv", label_column="price")
    assert (single.problem_type, single.label_names) == (SINGLE, ("0", "1"))
    subset = config("zero_one_columns.csv", label_columns=["sound", "service"])
    assert load_labeled_splits(subset).label_names == ("sound", "service")
    assert expected_num_labels(subset) == 2
    assert "label_columns" not in findings("zero_one_columns.csv", label_columns=["sound", "service"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problem_type": SINGLE}, "'sound', 'price', 'service' all hold 0 and 1; name one as label_column"),
        ({"label_column": "price", "label_columns": ["sound"]}, "leave one of the two empty"),
        ({"label_columns": ["sound", "size"]}, "has no label_columns size; it has"),
        ({"label_columns": ["sound", "text"]}, "column 'text' holds .* neither 0 nor 1|cannot be the text"),
        ({"label_columns": ["sound", "price"], "problem_type": REGRESSION}, "several labels per text"),
    ],
)
def test_label_columns_invalid_raises(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load("zero_one_columns.csv", **changes)


def test_case_and_space_csv_remedy_merges_label_spellings() -> None:
    finding = findings("case_and_space.csv")["label_spelling"]
    assert "'Positive' and 'positive' and 'positive '" in finding["sentence"]
    assert (finding["remedy"], finding["count"]) == ("label_spelling", 30)
    inspection = inspect(config("case_and_space.csv", remedies=["label_spelling"]))
    assert inspection["labels"]["different"] == 2, "the card shows labels as they are learned"
    data = load("case_and_space.csv", remedies=["label_spelling"])
    assert data.label_names == ("negative", "positive")
    counts = Counter(by_text("case_and_space.csv", remedies=["label_spelling"]).values())
    assert counts == {"negative": 30, "positive": 30}
    assert data.record["dropped"] == [
        {"remedy": "label_spelling", "split": "train", "rows": 0, "labels": ["Positive", "positive "]}
    ]


def test_mixed_types_jsonl_reads_numbers_among_texts_as_texts() -> None:
    data = load("mixed_types.jsonl")
    assert data.label_names == ("0", "1") and data.problem_type == SINGLE
    labels = by_text("mixed_types.jsonl")
    assert labels["4000"] == "1" and labels["4005"] == "0"
    assert sum(data.record["used"].values()) == 40
    assert inspect(config("mixed_types.jsonl"))["in_force"]["text_column"] == "text"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_zero_one_lists_are_one_label_per_position(tmp_path: Path) -> None:
    cells = ["[1, 0, 1]", "[0, 0, 0]", "[0, 1, 1]", "[1, 1, 0]"]
    write_csv(tmp_path / "a.csv", [(f"Text {i}", cells[i % 4]) for i in range(80)])
    data = load(tmp_path / "a.csv")
    assert (data.problem_type, data.label_names) == (MULTI, ("0", "1", "2"))
    assert by_text(tmp_path / "a.csv")["Text 0"] == ("0", "2")
    write_csv(tmp_path / "a.csv", [*[(f"Text {i}", cells[i % 4]) for i in range(6000)], ("Odd", "[1, 0]")])
    with pytest.raises(DataError, match=r"row 6002, .* holds '\[1, 0\]', which is not a list of 3 numbers"):
        load(tmp_path / "a.csv")


def test_unclosed_list_raises_with_its_row(tmp_path: Path) -> None:
    rows = [(f"Text {i}", ["['a', 'b']", "['b']", "[]"][i % 3]) for i in range(60)]
    write_csv(tmp_path / "a.csv", [*rows, ("Odd", "['a', b")])
    with pytest.raises(DataError, match="row 62, column 'label' holds .*, which is not a list"):
        load(tmp_path / "a.csv")


def test_bracketed_words_are_single_labels(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [(f"Text {i}", ["[NEG]", "[POS]"][i % 2]) for i in range(40)])
    assert load(tmp_path / "a.csv").label_names == ("[NEG]", "[POS]")


def test_known_label_column_precedes_zero_one_columns(tmp_path: Path) -> None:
    rows = [{"text": f"Text {i}", "new": i % 2, "long": i % 3 // 2, "label": "ab"[i % 2]} for i in range(40)]
    assert load(jsonl(tmp_path / "a.jsonl", rows)).label_names == ("a", "b")
    rows = [{"text": f"Text {i}", "new": bool(i % 2), "long": i % 3 == 0, "x": 1} for i in range(40)]
    assert load(jsonl(tmp_path / "b.jsonl", rows)).label_names == ("new", "long")


def test_label_columns_empty_cell_is_missing_label(tmp_path: Path) -> None:
    rows = [{"text": f"Text {i}", "new": i % 2, "long": i % 3 // 2} for i in range(40)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"text": "No flag", "new": 1}])
    with pytest.raises(DataError, match="row 41, column 'new, long' is empty"):
        load(path)
    assert sum(load(path, remedies=["empty"]).record["used"].values()) == 40


def test_text_column_with_a_list_raises_with_its_row(tmp_path: Path) -> None:
    rows = [{"text": f"Text {i}", "label": "ab"[i % 2]} for i in range(5100)]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"text": ["a"], "label": "a"}])
    with pytest.raises(DataError, match="row 5101, column 'text' holds"):
        load(path)


def test_decimal_mark_is_inferred_from_all_splits(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(f"Text {i}", f"{i + 1},2{i % 10}0") for i in range(60)])
    write_csv(tmp_path / "test.csv", [("Other", "1.5"), ("Another", "2,250")])
    labels = by_text(tmp_path)
    assert (labels["Text 0"], labels["Other"], labels["Another"]) == (1200, 1.5, 2250)


def test_numbers_with_both_marks_give_a_finding(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [(f"Text {i}", f"{i}{'.,'[i % 2]}5") for i in range(60)])
    assert "'0.5' and '1,5'" in findings(tmp_path / "a.csv")["mixed_numbers"]["sentence"]
    assert by_text(tmp_path / "a.csv")["Text 3"] == 3.5


def test_inspect_unmatched_head_names_asks_for_base_head(tmp_path: Path) -> None:
    model = make_tiny_bert(tmp_path / "model", num_labels=2)
    write_csv(tmp_path / "a.csv", [(f"Text {i}", ["bad", "good"][i % 2]) for i in range(40)])
    settings = config(tmp_path / "a.csv", model_name_or_path=str(model))
    inspection = inspect(settings)
    assert inspection["findings"][0]["kind"] == inspection["findings"][0]["setting"] == "base_head"
    assert "has a head for 'LABEL_0', 'LABEL_1'" in inspection["error"] and inspection["used"]["train"] == 28
    with pytest.raises(ModelError, match="Choose base_head"):
        tasks.check_trainable(settings.to_dict())
    by_order = inspect(dataclasses.replace(settings, base_head="by_order"))
    assert by_order["error"] is None and by_order["head"]["rows"] == [0, 1]
    assert "outputs LABEL_0, LABEL_1." in data_facts(by_order)
    fresh = inspect(dataclasses.replace(settings, base_head="fresh"))
    assert "replaced by a new one" in data_facts(fresh)
    tasks.check_trainable(dataclasses.replace(settings, base_head="fresh").to_dict())


def test_inspect_matching_head_names_keeps_the_head(tmp_path: Path) -> None:
    model = make_tiny_bert(tmp_path / "model", num_labels=2, id2label={0: "GOOD", 1: "Bad"})
    write_csv(tmp_path / "a.csv", [(f"Text {i}", ["bad", "good"][i % 2]) for i in range(40)])
    inspection = inspect(config(tmp_path / "a.csv", model_name_or_path=str(model)))
    assert inspection["head"] == {"labels": ["GOOD", "Bad"], "rows": [1, 0]} and inspection["error"] is None
    assert "the labels are its outputs Bad, GOOD." in data_facts(inspection)
