"""Exports of annotation tools as rows: Label Studio, Doccano and Argilla, each by its own keys.

Formats: Label Studio's task format (labelstud.io/guide/task_format) and its JSON_MIN, Doccano's JSONL of a
text classification project, Argilla's records (fields, responses, suggestions), the flat columns of its
`to_datasets`, and the records of Argilla 1. Of several annotators the first one's answer is taken.

Plain rows may have keys such as `annotations` or `label.responses`, so a record matches a format only where
the values under its keys have the tool's own types; `read` relies on what `matches` has checked.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
_DOCCANO = {
    "id", "text", "data", "label", "labels", "meta", "metadata", "annotations", "annotation_approver",
    "Comments", "comments", "entities", "relations",
}  # fmt: skip
_TASK_LISTS = ("annotations", "completions", "predictions")
_ANSWERS = ("choices", "rating", "number", "text", "taxonomy")  # what a task can be labeled with as a whole
_LOOKED_AT = 1000  # records that decide on the format


@dataclass(frozen=True)
class Annotated:
    """One record of an export: its columns, whether annotators differ, and kinds of answers without a label.

    `spans` are such kinds: marked passages or regions, which label no text as a whole.
    """

    cells: Record
    labels: tuple[str, ...] = ()
    differ: bool = False
    spans: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ExportFormat:
    """A tool's name, whether a record is of its format, and how it is read."""

    name: str
    matches: Callable[[Record], bool]
    read: Callable[[Record], Annotated]


def export_format(records: Sequence[Any]) -> ExportFormat | None:
    """The tool that wrote these records, by the first of them; None for plain rows."""
    some = records[:_LOOKED_AT]
    if not some or not all(isinstance(record, dict) for record in some):
        return None
    return next((kind for kind in FORMATS if all(map(kind.matches, some))), None)


def _is_task(record: Record) -> bool:
    lists = [record[key] for key in _TASK_LISTS if record.get(key) is not None]
    return (
        isinstance(record.get("data"), dict)
        and bool(lists)
        and all(isinstance(annotations, list) for annotations in lists)
        and all(_is_annotation(annotation) for annotations in lists for annotation in annotations)
    )


def _is_annotation(annotation: Any) -> bool:
    """Whether this is an annotation or a prediction of Label Studio; short exports give its number alone."""
    if not isinstance(annotation, dict):
        return isinstance(annotation, int)
    result = annotation.get("result")
    return result is None or (isinstance(result, list) and all(isinstance(part, dict) for part in result))


def _task(record: Record) -> Annotated:
    """A Label Studio task: its data, and a column for each control that labels it as a whole."""
    made = record.get("annotations", record.get("completions")) or []
    made = [one for one in made if isinstance(one, dict) and not one.get("was_cancelled")]
    answers = [_answers(one.get("result") or []) for one in made]
    given = [cells for cells, _ in answers if cells]
    first = given[0] if given else {}
    data = {f"data.{key}" if key in first else key: value for key, value in record["data"].items()}
    spans = frozenset(kind for _, kinds in answers for kind in kinds)
    return Annotated({**data, **first}, tuple(first), any(cells != first for cells in given), spans)


def _answers(results: Sequence[Any]) -> tuple[Record, set[str]]:
    cells: Record = {}
    several: dict[str, list[list[Any]]] = {}
    spans: set[str] = set()
    for result in results:
        kind, value, name = result.get("type"), result.get("value"), result.get("from_name")
        key = "text" if kind == "textarea" else kind
        if not isinstance(value, dict) or not isinstance(name, str):
            continue
        if key not in _ANSWERS or key not in value:
            spans.add(str(kind))
            continue
        answer = value[key]
        if kind == "taxonomy" and isinstance(answer, list):
            answer = [" / ".join(map(str, path)) if isinstance(path, list) else path for path in answer]
        if kind == "textarea" and isinstance(answer, list):
            answer = "\n".join(map(str, answer))
        if isinstance(answer, list):
            several.setdefault(name, []).append(answer)
        else:
            several.pop(name, None)
        cells[name] = answer
    joined = {name: _without_repeats(lists) for name, lists in several.items() if len(lists) > 1}
    return cells | joined, spans


def _without_repeats(lists: Sequence[list[Any]]) -> list[Any]:
    """The parts of all lists, each once; they may be lists or objects, which no set holds."""
    parts: dict[str, Any] = {}
    for part in itertools.chain.from_iterable(lists):
        parts.setdefault(json.dumps(part, sort_keys=True), part)
    return list(parts.values())


def _is_minimal_task(record: Record) -> bool:
    has_keys = {"annotator", "annotation_id", "lead_time"} <= record.keys()
    return has_keys and isinstance(record["lead_time"], int | float | None)


def _minimal_task(record: Record) -> Annotated:
    """A task of Label Studio's JSON_MIN: the answers lie beside the data, several choices in an object."""
    own = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}
    cells, labels, spans = {}, [], set()
    for key, value in record.items():
        if key in own:
            continue
        if isinstance(value, dict) and isinstance(value.get("choices"), list):
            value = value["choices"]
            labels.append(key)
        elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
            spans |= {
                kind for part in value if isinstance(part, dict) for kind in part if kind.endswith("labels")
            }
            continue
        cells[key] = value
    return Annotated(cells, tuple(labels), spans=frozenset(spans))


def _is_doccano(record: Record) -> bool:
    text = record.get("text", record.get("data"))
    lists = [record[key] for key in ("label", "labels", "annotations", "entities") if key in record]
    return (
        isinstance(text, str)
        and "id" in record
        and set(record) <= _DOCCANO
        and bool(lists)
        and all(isinstance(labels, list) for labels in lists)
        and all(_is_doccano_label(label) for labels in lists for label in labels)
    )


def _is_doccano_label(label: Any) -> bool:
    """Whether this is a label, a marked passage `[start, end, label]`, or an object with either."""
    if isinstance(label, list):
        return len(label) == 3 and isinstance(label[0], int) and isinstance(label[1], int)
    if isinstance(label, dict):
        return "label" in label or "start_offset" in label
    return isinstance(label, str | int)


def _doccano(record: Record) -> Annotated:
    labels = record.get("label", record.get("labels", record.get("annotations"))) or []
    spans = {"spans" for part in labels if isinstance(part, list)}
    spans |= {"spans" for part in labels if isinstance(part, dict) and "start_offset" in part}
    spans |= {"entities"} if record.get("entities") else set()
    names = [part.get("label") if isinstance(part, dict) else part for part in labels]
    cells = {"text": record.get("text", record.get("data")), "label": [] if spans else names}
    return Annotated(cells, () if spans else ("label",), spans=frozenset(spans))


def _is_argilla(record: Record) -> bool:
    has_keys = isinstance(record.get("fields"), dict) and ("responses" in record or "suggestions" in record)
    return has_keys and _are_responses(record.get("responses"))


def _are_responses(responses: Any) -> bool:
    """Whether these are answers by question (Argilla 2), or objects with a user's answers (Argilla 1)."""
    if isinstance(responses, dict):
        return all(isinstance(answers, list | None) for answers in responses.values())
    answers = responses if isinstance(responses, list) else [responses]
    if responses is None:
        return True
    return all(isinstance(a, dict) and isinstance(a.get("values"), dict | None) for a in answers)


def _argilla(record: Record) -> Annotated:
    """A record of Argilla: its fields, and the first response to each question."""
    responses: dict[str, list[Any]] = {}
    if isinstance(record.get("responses"), dict):
        for question, answers in record["responses"].items():
            responses[question] = [_value(answer) for answer in answers or [] if _is_submitted(answer)]
    for answer in record["responses"] if isinstance(record.get("responses"), list) else []:
        if _is_submitted(answer):
            for question, value in (answer.get("values") or {}).items():
                responses.setdefault(question, []).append(_value(value))
    return _questions(record["fields"], responses)


def _is_flat_argilla(record: Record) -> bool:
    columns = [key for key in record if key.endswith(".responses")]
    if not columns:
        return any(map(_is_response_list, record.values()))
    if not all(f"{key}.users" in record for key in columns):
        return False
    return all(isinstance(record[name], list | None) for key in columns for name in (key, f"{key}.users"))


def _flat_argilla(record: Record) -> Annotated:
    """A row of Argilla's `to_datasets`: `label.responses` beside its users, or a list of responses."""
    fields, responses = {}, {}
    for key, value in record.items():
        if key.endswith(".responses"):
            responses[key.removesuffix(".responses")] = list(value or [])
        elif _is_response_list(value):
            responses[key] = [_value(answer) for answer in value if _is_submitted(answer)]
        elif ".responses." not in key and ".suggestion" not in key and "-suggestion" not in key:
            fields[key] = value
    own = {"id", "status", "external_id", "_server_id", "inserted_at", "updated_at", "metadata", "vectors"}
    return _questions({key: value for key, value in fields.items() if key not in own}, responses)


def _is_old_argilla(record: Record) -> bool:
    has_keys = {"annotation", "prediction"} <= record.keys()
    has_text = isinstance(record.get("text"), str) or isinstance(record.get("inputs"), dict)
    return has_keys and has_text and isinstance(record["prediction"], list | None)


def _old_argilla(record: Record) -> Annotated:
    """A record of Argilla 1: one text or several inputs, and one annotation."""
    inputs, text, label = record.get("inputs"), record.get("text"), record["annotation"]
    fields = {"text": text} if isinstance(text, str) else dict(inputs or {})
    spans = frozenset(
        {"spans"} if isinstance(label, list) and any(isinstance(p, list) for p in label) else ()
    )
    return Annotated({**fields, "label": None if spans else label}, () if spans else ("label",), spans=spans)


def _questions(fields: Record, responses: dict[str, list[Any]]) -> Annotated:
    first = {question: answers[0] if answers else None for question, answers in responses.items()}
    differ = any(answer != first[question] for question, answers in responses.items() for answer in answers)
    cells = {f"fields.{key}" if key in first else key: value for key, value in fields.items()}
    spans = frozenset(
        "spans"
        for value in first.values()
        if isinstance(value, list) and any(isinstance(p, dict) for p in value)
    )
    return Annotated({**cells, **first}, tuple(key for key in first if not spans), differ, spans)


def _is_response_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and {"value", "user_id"} <= part.keys() for part in value)
    )


def _is_submitted(answer: Any) -> bool:
    return not isinstance(answer, dict) or answer.get("status") in (None, "submitted")


def _value(answer: Any) -> Any:
    return answer.get("value") if isinstance(answer, dict) else answer


FORMATS = (
    ExportFormat("Label Studio", _is_task, _task),
    ExportFormat("Label Studio", _is_minimal_task, _minimal_task),
    ExportFormat("Argilla", _is_argilla, _argilla),
    ExportFormat("Argilla", _is_old_argilla, _old_argilla),
    ExportFormat("Argilla", _is_flat_argilla, _flat_argilla),
    ExportFormat("Doccano", _is_doccano, _doccano),
)
