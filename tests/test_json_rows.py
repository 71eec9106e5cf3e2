"""JSON to rows: every shape, objects in objects, and the exports of annotation tools."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_core.config import TrainConfig
from peft_core.data.files import Table, read_table
from peft_core.data.json_shapes import raw_rows, rows_of, shape_of
from peft_core.data.labelled import load_labelled_text
from peft_core.data.streams import open_rows
from peft_core.errors import DataError

CASES = Path(__file__).parent / "cases"
ROWS = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]


def read(path: Path, value: Any, *, lines: bool = False) -> Table:
    text = "\n".join(map(json.dumps, value)) if lines else json.dumps(value)
    path.write_text(text, encoding="utf-8")
    return read_table(path)


def test_read_table_of_label_studio_has_text_and_sentiment() -> None:
    table = read_table(CASES / "label_studio.json")
    assert (table.facts["export"], list(table.frame.columns)) == ("Label Studio", ["text", "sentiment"])
    assert set(table.frame["sentiment"]) == {"pos", "neg"}
    labelled = load_labelled_text(TrainConfig(dataset_name=str(CASES / "label_studio.json")))
    assert labelled.label_names == ("neg", "pos")


def test_read_table_of_texts_that_are_sometimes_numbers_has_texts() -> None:
    frame = read_table(CASES / "mixed_types.jsonl").frame
    assert frame["text"].iloc[0] == "4000"
    assert {type(value) for value in frame["text"]} == {str}
    assert set(frame["label"]) == {"0", "1"}


def choice(name: str, *labels: str, kind: str = "choices") -> dict[str, Any]:
    return {"from_name": name, "to_name": "text", "type": kind, "value": {kind: list(labels)}}


def test_label_studio_takes_the_first_answer_that_was_not_canceled_and_notes_differences(
    tmp_path: Path,
) -> None:
    tasks = [
        {"data": {"text": "a"}, "annotations": [{"was_cancelled": True, "result": [choice("s", "no")]},
                                                {"result": [choice("s", "yes")]}]},
        {"data": {"text": "b"}, "annotations": [{"result": [choice("s", "yes")]},
                                                {"result": [choice("s", "no")]}]},
        {"data": {"text": "c"}, "annotations": []},
    ]  # fmt: skip
    table = read(tmp_path / "a.json", tasks)
    assert table.frame["s"].tolist() == ["yes", "yes", None]
    (note,) = table.facts["notes"]
    assert (note["kind"], note["rows"]) == ("annotators", [2])


def test_label_studio_with_several_choices_has_lists(tmp_path: Path) -> None:
    tasks = [
        {"data": {"text": text}, "annotations": [{"result": [choice("topics", *labels)]}]}
        for text, labels in (("a", ("x", "y")), ("b", ("x",)))
    ]
    assert read(tmp_path / "a.json", tasks).frame["topics"].tolist() == [["x", "y"], ["x"]]


def test_label_studio_rating_and_taxonomy_are_columns(tmp_path: Path) -> None:
    results = [
        {"from_name": "stars", "type": "rating", "value": {"rating": 4}},
        {"from_name": "topic", "type": "taxonomy", "value": {"taxonomy": [["Food", "Bread"]]}},
    ]
    table = read(tmp_path / "a.json", [{"data": {"text": "a"}, "annotations": [{"result": results}]}])
    assert table.frame.iloc[0].to_dict() == {"text": "a", "stars": 4, "topic": "Food / Bread"}


@pytest.mark.parametrize(
    "record",
    [
        {"id": 1, "text": "good", "label": ["pos"], "Comments": []},
        {"id": 1, "data": "good", "label": ["pos"]},
        {"id": "1", "fields": {"text": "good"}, "suggestions": {"label": {"value": "neg"}},
         "responses": {"label": [{"value": "pos", "user_id": "u"}]}, "vectors": {}},
        {"fields": {"text": "good"},
         "responses": [{"user_id": "u", "status": "submitted", "values": {"label": {"value": "pos"}}}]},
        {"id": "1", "text": "good", "label.responses": ["pos"], "label.responses.users": ["u"],
         "label.suggestion": "neg"},
        {"text": "good", "label": [{"user_id": "u", "value": "pos", "status": "submitted"}],
         "label-suggestion": "neg", "metadata": "{}"},
        {"text": "good", "inputs": {"text": "good"}, "prediction": [["neg", 0.9]], "annotation": "pos",
         "metadata": {}, "status": "Validated"},
    ],
)  # fmt: skip
def test_doccano_and_argilla_have_text_and_label(record: dict[str, Any], tmp_path: Path) -> None:
    table = read(tmp_path / "a.jsonl", [record, record], lines=True)
    assert table.facts["export"] in ("Doccano", "Argilla")
    assert table.frame[["text", "label"]].values.tolist() == [["good", "pos"]] * 2
    assert len(table.frame.columns) == 2
    stream = open_rows(tmp_path / "a.jsonl")
    assert [row for chunk in stream.chunks() for row in chunk] == table.frame.values.tolist()


@pytest.mark.parametrize(
    "record",
    [
        {"id": 1, "text": "Ann met Bo", "label": [[0, 3, "PER"]]},
        {"id": 1, "text": "Ann met Bo", "entities": [{"start_offset": 0, "end_offset": 3, "label": "PER"}],
         "relations": []},
        {"data": {"text": "x"}, "annotations": [{"result": [choice("label", "PER", kind="labels")]}]},
    ],
)  # fmt: skip
def test_exports_of_marked_passages_are_refused(record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="marks passages"):
        read(tmp_path / "a.jsonl", [record, record], lines=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"train": ROWS, "test": ROWS}, "rows under 'train', 'test'"),
        ({"text": ["a", "b"], "label": ["x"]}, "different lengths: 'text' has 2, 'label' has 1"),
        ({"data": []}, "no rows"),
        ([], "no rows"),
        (["good", "bad"], "'good' is no object"),
        (7, "holds 7 and no rows"),
    ],
)
def test_json_without_rows_says_what_was_read(value: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path / "a.json", value)


@pytest.mark.parametrize("orient", ["records", "split", "index", "columns", "table"])
def test_every_shape_that_pandas_writes_is_read(orient: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, index=["a", "b"] if orient == "index" else None)
    path = tmp_path / "a.json"
    path.write_text(frame.to_json(orient=orient), encoding="utf-8")
    assert read_table(path).frame[["text", "label"]].values.tolist() == [["good", "pos"], ["bad", "neg"]]


def test_objects_in_objects_are_columns_and_lists_of_objects_are_left_out_by_name(tmp_path: Path) -> None:
    rows = [
        {"review": {"text": row["text"], "tags": ["a"]}, "label": row["label"], "tokens": [{"id": 1}]}
        for row in ROWS
    ]
    for table in (read(tmp_path / "a.jsonl", rows, lines=True), read(tmp_path / "b.json", {"reviews": rows})):
        assert list(table.frame.columns) == ["review.text", "review.tags", "label"]
        (note,) = table.facts["notes"]
        assert note["kind"] == "left_out" and "'tokens'" in note["sentence"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    table = read_table(tmp_path / "c.parquet")
    assert set(table.frame.columns) == {"review.text", "review.tags", "label"}
    assert open_rows(tmp_path / "c.parquet").columns == list(table.frame.columns)


def test_no_cell_holds_the_repr_of_an_object(tmp_path: Path) -> None:
    deep: dict[str, Any] = {"text": "a", "label": "b"}
    for _ in range(12):
        deep = {"inner": deep, "note": "x"}
    frame = read(tmp_path / "a.json", [deep, deep]).frame
    assert not [value for value in frame.to_numpy().ravel() if "{" in str(value)]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
records = st.lists(
    st.dictionaries(st.sampled_from(["text", "label", "id", "meta"]), values), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=records,
    shape=st.sampled_from(["array", "under", "lists", "split"]),
    indent=st.sampled_from([None, 2]),
)
def test_raw_rows_are_the_parsed_rows(rows: list[dict[str, Any]], shape: str, indent: int | None) -> None:
    keys = ["text", "label", "id"]
    if shape == "lists":  # columns of objects alone are two lists of rows, which is refused
        rows = [{key: None if isinstance(v, dict) else v for key, v in row.items()} for row in rows]
    whole = {
        "array": rows,
        "under": {"version": "1", "rows": rows},
        "lists": {key: [row.get(key) for row in rows] for key in keys},
        "split": {"columns": keys, "data": [[row.get(key) for key in keys] for row in rows]},
    }[shape]
    text = json.dumps(whole, indent=indent)
    seen = shape_of("a.json", json.loads(text))
    assert [json.loads(raw) for raw in raw_rows(text, seen)] == rows_of(json.loads(text), seen)
