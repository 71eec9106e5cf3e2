"""JSON to rows: every shape, nested objects, and the exports of annotation tools."""

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
from peft_core.data.annotation_exports import detect_export_format
from peft_core.data.files import Table, read_table
from peft_core.data.json_shapes import detect_shape, extract_rows, raw_rows
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.streams import open_rows
from peft_core.data.writers import JsonLinesWriter
from peft_core.errors import DataError, PeftCoreError

CASES = Path(__file__).parents[1] / "cases"
ROWS = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]


def read(path: Path, content: Any, *, lines: bool = False) -> Table:
    text = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return read_table(path)


def test_read_table_of_label_studio_has_text_and_sentiment() -> None:
    table = read_table(CASES / "label_studio.json")
    assert (table.facts["export"], list(table.frame.columns)) == ("Label Studio", ["text", "sentiment"])
    assert set(table.frame["sentiment"]) == {"pos", "neg"}
    labelled = load_labeled_splits(TrainConfig(dataset_name=str(CASES / "label_studio.json")))
    assert labelled.label_names == ("neg", "pos")


def test_read_table_of_mixed_texts_and_numbers_has_strings() -> None:
    frame = read_table(CASES / "mixed_types.jsonl").frame
    assert frame["text"].iloc[0] == "4000"
    assert {type(value) for value in frame["text"]} == {str}
    assert set(frame["label"]) == {"0", "1"}


def choice(name: str, *labels: str, kind: str = "choices") -> dict[str, Any]:
    return {"from_name": name, "to_name": "text", "type": kind, "value": {kind: list(labels)}}


def test_label_studio_takes_first_answer_not_canceled_and_notes_differences(
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
def test_span_annotation_exports_are_refused(record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="marks passages"):
        read(tmp_path / "a.jsonl", [record, record], lines=True)


@pytest.mark.parametrize(
    "cells",
    [
        {"total.responses": 12},
        {"total.responses": [1, 2]},
        {"total.responses": None},
        {"fields": {"a": "x"}, "responses": ["x"]},
        {"fields": {"a": "x"}, "responses": {"label": "pos"}},
        {"fields": {"a": "x"}, "responses": 3},
        {"data": {"a": "x"}, "annotations": 3, "predictions": []},
        {"data": {"a": "x"}, "annotations": ["good"]},
        {"data": {"a": "x"}, "annotations": [{"result": "good"}]},
        {"data": {"a": "x"}, "annotations": [{"result": [3]}]},
        {"annotation": "x", "prediction": "neg"},
        {"annotator": "a", "annotation_id": 1, "lead_time": "long"},
        {"id": 1, "labels": [{"name": "pos"}]},
        {"id": 1, "entities": 3, "labels": []},
    ],
)
def test_export_format_of_plain_rows_with_keys_of_exports_is_none(
    cells: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"text": "good", **cells}, {"text": "bad", **cells}]
    assert detect_export_format(rows) is None
    assert read(tmp_path / "a.json", rows).frame["text"].tolist() == ["good", "bad"]


def test_label_studio_answers_of_odd_types_are_read(tmp_path: Path) -> None:
    results = [
        {"from_name": "topic", "type": "taxonomy", "value": {"taxonomy": None}},
        {"from_name": "s", "type": "choices", "value": {"choices": [["a"], {"b": 1}]}},
        {"from_name": "s", "type": "choices", "value": {"choices": [["a"], "c"]}},
        {"from_name": ["no", "name"], "type": "choices", "value": {"choices": ["a"]}},
    ]
    table = read(tmp_path / "a.json", [{"data": {"text": "a"}, "annotations": [{"result": results}]}])
    assert table.frame.iloc[0].to_dict() == {"text": "a", "topic": None}
    assert "'s'" in table.facts["notes"][0]["sentence"]


def test_record_of_another_format_raises_data_error(tmp_path: Path) -> None:
    record = {"fields": {"text": "good"}, "responses": {"label": [{"value": "pos"}]}}
    records = [record] * 5000 + [{"text": "plain"}]
    words = (
        r"'a.jsonl' is an export of Argilla, but an object with the keys \['text'\] is not one of its records"
    )
    with pytest.raises(DataError, match=words):
        read(tmp_path / "a.jsonl", records, lines=True)
    stream = open_rows(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=words):
        list(stream.chunks())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": ROWS, "test": ROWS}, "rows under 'train', 'test'"),
        ({"text": ["a", "b"], "label": ["x"]}, "different lengths: 'text' has 2, 'label' has 1"),
        ({"data": []}, "no rows"),
        ([], "no rows"),
        (["good", "bad"], "row 1: a text is not an object"),
        ([ROWS[0], None], "row 2: null is not an object"),
        (7, "holds a number and no rows"),
        (False, "holds true or false and no rows"),
    ],
)
def test_json_without_rows_raises_error_naming_its_content(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path / "a.json", content)


@pytest.mark.parametrize(
    "content", ["hf_secret", ["hf_secret"], {"token": "hf_secret"}, [{"text": "a"}, ["hf_secret"]]]
)
def test_json_without_a_data_set_is_not_quoted_in_the_error(content: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        load_labeled_splits(TrainConfig(dataset_name=str(tmp_path / "a.json")))
    assert "hf_secret" not in str(refused.value)


@pytest.mark.parametrize("orient", ["records", "split", "index", "columns", "table"])
def test_read_table_reads_every_orient_of_pandas(orient: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, index=["a", "b"] if orient == "index" else None)
    path = tmp_path / "a.json"
    path.write_text(frame.to_json(orient=orient), encoding="utf-8")
    assert read_table(path).frame[["text", "label"]].values.tolist() == [["good", "pos"], ["bad", "neg"]]


def test_nested_objects_become_columns_and_lists_of_objects_are_left_out(tmp_path: Path) -> None:
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


def test_deeply_nested_objects_leave_no_repr_in_cells(tmp_path: Path) -> None:
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
def test_raw_rows_equal_the_parsed_rows(rows: list[dict[str, Any]], shape: str, indent: int | None) -> None:
    keys = ["text", "label", "id"]
    if shape == "lists":  # columns of objects only would be read as lists of rows and refused
        rows = [{key: None if isinstance(v, dict) else v for key, v in row.items()} for row in rows]
    whole = {
        "array": rows,
        "under": {"version": "1", "rows": rows},
        "lists": {key: [row.get(key) for row in rows] for key in keys},
        "split": {"columns": keys, "data": [[row.get(key) for key in keys] for row in rows]},
    }[shape]
    text = json.dumps(whole, indent=indent)
    detected = detect_shape("a.json", json.loads(text))
    assert [json.loads(raw) for raw in raw_rows(text, detected)] == extract_rows(json.loads(text), detected)


EXPORT_KEYS = [
    "text", "label", "labels", "id", "data", "meta", "annotations", "completions", "predictions",
    "result", "value", "type", "from_name", "choices", "taxonomy", "textarea", "rating", "annotator",
    "annotation_id", "lead_time", "fields", "responses", "suggestions", "label.responses",
    "label.responses.users", "status", "values", "user_id", "inputs", "annotation", "prediction",
    "entities", "start_offset", "label.suggestion", "was_cancelled",
]  # fmt: skip
odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "good", *EXPORT_KEYS]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(EXPORT_KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)
odd_records = st.one_of(
    st.dictionaries(st.sampled_from(EXPORT_KEYS), odd_values, max_size=6),
    *(
        st.fixed_dictionaries(dict.fromkeys(keys, odd_values))
        for keys in (
            ("data", "annotations"),
            ("fields", "responses"),
            ("text", "label.responses", "label.responses.users"),
            ("text", "annotation", "prediction"),
            ("text", "annotator", "annotation_id", "lead_time"),
            ("id", "text", "label", "entities"),
        )
    ),
    st.fixed_dictionaries(  # tasks of Label Studio with odd results
        {
            "data": st.fixed_dictionaries({"text": st.text(max_size=3)}),
            "annotations": st.lists(
                st.fixed_dictionaries(
                    {
                        "result": st.lists(
                            st.fixed_dictionaries(
                                {
                                    "from_name": odd_values,
                                    "type": st.sampled_from(["choices", "taxonomy", "textarea", "rating"]),
                                    "value": st.dictionaries(
                                        st.sampled_from(EXPORT_KEYS), odd_values, max_size=4
                                    ),
                                }
                            ),
                            max_size=3,
                        )
                    }
                ),
                max_size=2,
            ),
        }
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(odd_records, min_size=1, max_size=4), lines=st.booleans(), whole=st.booleans())
def test_odd_records_with_keys_of_exports_give_rows_or_one_error(
    rows: list[dict[str, Any]], lines: bool, whole: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / ("a.jsonl" if lines else "a.json")
    if lines:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows[0] if whole else rows), encoding="utf-8")
    for use in (read_table, lambda path: list(open_rows(path).chunks())):
        try:
            assert use(path) is not None
        except PeftCoreError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("columns", "names"),
    [([0, 1], ["0", "1"]), ([None, 1.5], ["column 1", "1.5"]), (["text", True], ["text", "true"])],
)
def test_split_json_with_columns_that_are_not_strings_names_them(
    columns: list[Any], names: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    table = read(path, {"columns": columns, "index": [0, 1], "data": [["good", "x"], ["bad", "y"]]})
    stream = open_rows(path)
    assert list(table.frame.columns) == stream.columns == names
    assert table.frame.to_numpy().tolist() == [["good", "x"], ["bad", "y"]] == next(stream.chunks())


def test_split_json_of_pandas_with_default_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    pd.DataFrame([["good", "x"], ["bad", "y"]]).to_json(path, orient="split")
    assert read_table(path).frame["1"].tolist() == ["x", "y"]
    assert next(open_rows(path).chunks()) == [["good", "x"], ["bad", "y"]]


@pytest.mark.parametrize(
    ("columns", "data", "words"),
    [
        ([["x", "y"], {"z": 1}], [["a", "b"]], r"the column name \['x', 'y'\] is not text"),
        (["text", "text"], [["a", "b"]], "several columns named 'text'; give each its own name"),
        ([1, "1"], [["a", "b"]], "several columns named '1'"),
        (["text", "label"], [["a", "b"], ["c"]], "row 2 of its data has 1 cells where 2 columns"),
        (["text", "label"], [["a", "b", "c"]], "row 1 of its data has 3 cells where 2 columns"),
    ],
)
def test_split_json_that_would_lose_cells_is_refused(
    columns: list[Any], data: list[Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=words):
        read(path, {"columns": columns, "data": data})
    with pytest.raises(DataError, match=words):
        open_rows(path)


@pytest.mark.parametrize("lines", [True, False])
def test_json_keys_with_spaces_or_empty_have_one_name_and_are_written_back(
    lines: bool, tmp_path: Path
) -> None:
    rows = [{" text ": "good", "": "x", "text": 1}, {" text ": "bad", "": "y", "text": 2}]
    path, out = tmp_path / "a.json", tmp_path / "out.jsonl"
    columns = list(read(path, rows, lines=lines).frame.columns)
    stream = open_rows(path)
    assert stream.columns == columns == ["text", "column 2", "text (3)"]
    (chunk,) = stream.chunks()
    assert chunk == [["good", "x", 1], ["bad", "y", 2]]
    writer = JsonLinesWriter(out, stream, {"predicted_label": str})
    writer.write(chunk, [["x"], ["y"]])
    writer.close()
    written = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [{k: v for k, v in row.items() if k != "predicted_label"} for row in written] == rows
