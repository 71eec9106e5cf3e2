"""Curated JSON files: every shape of rows, and exports of annotation tools."""

import json
from typing import Any

from batteries.curated import RECORDS, TWO, json_file, read, refused

TASK = ("text", "sentiment")


def _task(text: str, *labels: str, **more: Any) -> dict[str, Any]:
    results = [
        {"from_name": "sentiment", "to_name": "text", "type": "choices", "value": {"choices": [label]}}
        for label in labels
    ]
    return {"id": 1, "data": {"text": text}, "annotations": [{"result": results, **more}]}


_JSON = (
    read("JSON lines", "\n".join(map(json.dumps, RECORDS)), name="a.jsonl"),
    read("JSON lines named .json", "\n".join(map(json.dumps, RECORDS)), name="a.json"),
    read("JSON lines with blank ones", "\n\n".join(map(json.dumps, RECORDS)) + "\n\n", name="a.jsonl"),
    read("JSON lines of an old Mac", "\r".join(map(json.dumps, RECORDS)), name="a.jsonl"),
    json_file("an array", RECORDS),
    read("an array over many lines", json.dumps(RECORDS, indent=2), name="a.json"),
    json_file("an array named .jsonl", RECORDS, name="a.jsonl"),
    json_file("a list a column", {"text": ["good", "bad"], "label": ["pos", "neg"]}),
    json_file("an object a column", {"text": {"0": "good", "1": "bad"}, "label": {"0": "pos", "1": "neg"}}),
    json_file("an object a row", {"a": RECORDS[0], "b": RECORDS[1]}),
    json_file(
        "pandas' split",
        {"columns": ["text", "label"], "index": [0, 1], "data": [["good", "pos"], ["bad", "neg"]]},
    ),
    json_file("pandas' table", {"schema": {"fields": []}, "data": RECORDS}),
    json_file("rows under a key", {"data": RECORDS}),
    json_file("rows under a key beside others", {"version": 2, "items": RECORDS, "next": None}),
    json_file("rows two keys deep", {"response": {"results": RECORDS, "took": 3}}),
    json_file("one object", RECORDS[0], (TWO[0],)),
    json_file(
        "texts that are sometimes numbers",
        [{"text": 4000, "label": 1}, {"text": "bad", "label": "0"}],
        (("4000", "1"), ("bad", "0")),
    ),
    json_file(
        "a key that is not in every row",
        [{"text": "good"}, {"text": "bad", "label": "neg"}],
        (("good", ""), ("bad", "neg")),
    ),
    json_file(
        "objects in objects",
        [{"review": {"text": t}, "label": y} for t, y in TWO],
        columns=("review.text", "label"),
    ),
    json_file("lists of objects beside", [{**r, "tokens": [{"id": 1}]} for r in RECORDS]),
    read(
        "numbers beyond all bounds",
        '{"text": "good", "label": 1e400}\n{"text": "bad", "label": 9223372036854775809}',
        (("good", "1e400"), ("bad", "9223372036854775809")),
        "a.jsonl",
    ),
    read(
        "a key twice",
        '{"text": "x", "text": "good", "label": "pos"}\n{"text": "bad", "label": "neg"}',
        name="a.jsonl",
    ),
    refused(
        "a JSON line cut short",
        '{"text": "a", "label": "b"}\n{"text": \n',
        "row 2 is not valid JSON",
        "a.jsonl",
    ),
    refused("a list among objects", '{"text": "a"}\n[1, 2]\n', "row 2: a list is not an object", "a.jsonl"),
    refused("an array of texts", '["good", "bad"]', "is not an object", "a.json"),
    refused("a text", '"good"', "no rows", "a.json"),
    refused("an empty array", "[]", "no rows", "a.json"),
    refused("no rows under the key", '{"data": []}', "no rows", "a.json"),
    refused(
        "rows under two keys",
        json.dumps({"train": RECORDS, "test": RECORDS}),
        "rows under 'train', 'test'",
        "a.json",
    ),
    refused("columns of two lengths", '{"text": ["a", "b"], "label": ["x"]}', "different lengths", "a.json"),
    refused("brackets without end", "[" * 100_000, "is not valid JSON", "a.json"),
    refused("half a character", '{"text": "a\\ud800", "label": "b"}', "lone surrogate", "a.jsonl"),
)
_EXPORTS = (
    json_file("Label Studio", [_task("good", "pos"), _task("bad", "neg")], columns=TASK),
    json_file(
        "Label Studio, several labels",
        [_task("good", "a", "b"), _task("bad", "a")],
        (("good", "['a', 'b']"), ("bad", "['a']")),
        columns=TASK,
    ),
    json_file(
        "Label Studio, a canceled answer",
        [
            {
                **_task("good", "pos"),
                "annotations": [
                    _task("", "neg", was_cancelled=True)["annotations"][0],
                    _task("", "pos")["annotations"][0],
                ],
            },
            _task("bad", "neg"),
        ],
        columns=TASK,
    ),
    json_file(
        "Label Studio's short form",
        [
            {"text": t, "id": 1, "sentiment": y, "annotator": 1, "annotation_id": 1, "lead_time": 2.0}
            for t, y in TWO
        ],
        columns=TASK,
    ),
    read(
        "Doccano",
        "\n".join(json.dumps({"id": 1, "text": t, "label": [y], "Comments": []}) for t, y in TWO),
        name="a.jsonl",
    ),
    read(
        "Doccano with data",
        "\n".join(json.dumps({"id": 1, "data": t, "label": [y]}) for t, y in TWO),
        name="a.jsonl",
    ),
    json_file(
        "Argilla",
        [
            {
                "id": "1",
                "fields": {"text": t},
                "metadata": {},
                "suggestions": {},
                "responses": {"label": [{"value": y, "user_id": "u"}]},
            }
            for t, y in TWO
        ],
    ),
    json_file(
        "Argilla, flat",
        [
            {
                "id": "1",
                "text": t,
                "label.responses": [y],
                "label.responses.users": ["u"],
                "status": "completed",
            }
            for t, y in TWO
        ],
    ),
    json_file(
        "Argilla 1",
        [
            {
                "text": t,
                "inputs": {"text": t},
                "prediction": [["pos", 0.5]],
                "annotation": y,
                "status": "Validated",
                "metadata": {},
            }
            for t, y in TWO
        ],
    ),
    refused(
        "Doccano's passages",
        json.dumps({"id": 1, "text": "good", "label": [[0, 4, "X"]]}),
        "marks passages",
        "a.jsonl",
    ),
    refused(
        "Label Studio's passages",
        json.dumps(
            [
                {
                    "data": {"text": "x"},
                    "annotations": [
                        {
                            "result": [
                                {
                                    "from_name": "l",
                                    "type": "labels",
                                    "value": {"labels": ["A"], "start": 0, "end": 1},
                                }
                            ]
                        }
                    ],
                }
            ]
        ),
        "marks passages (labels)",
        "a.json",
    ),
)

JSON_FILES = (*_JSON, *_EXPORTS)
