"""Read exports of the annotation tools Label Studio, Doccano and Argilla as rows.

Formats: Label Studio's task format (labelstud.io/guide/task_format) and its JSON_MIN, Doccano's JSONL of a
text classification project, Argilla's records (fields, responses, suggestions), the flat columns of its
`to_datasets`, and the records of Argilla 1. If a record has several annotators, the first answer is used.

Plain rows may have keys such as `annotations` or `label.responses`, so a record matches a format only if the
values under its keys have the types that the tool writes. `read` relies on what `matches` has checked.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
_DOCCANO_KEYS = {
    "id", "text", "data", "label", "labels", "meta", "metadata", "annotations", "annotation_approver",
    "Comments", "comments", "entities", "relations",
}  # fmt: skip
_TASK_LISTS = ("annotations", "completions", "predictions")
_TASK_LABEL_TYPES = ("choices", "rating", "number", "text", "taxonomy")  # controls that label a whole task
_DETECTION_RECORDS = 1000  # records from which the format is detected


@dataclass(frozen=True)
class AnnotatedRecord:
    """One record of an export.

    Attributes:
        cells: Cells by column.
        labels: Names of the columns that hold labels.
        annotators_disagree: Whether annotators gave different answers.
        spans: Types of annotations that mark passages or regions instead of labeling the whole text.
    """

    cells: Record
    labels: tuple[str, ...] = ()
    annotators_disagree: bool = False
    spans: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ExportFormat:
    """An export format: the tool's name, a test whether a record has the format, and its reader."""

    name: str
    matches: Callable[[Record], bool]
    read: Callable[[Record], AnnotatedRecord]


def detect_export_format(records: Sequence[Any]) -> ExportFormat | None:
    """Return the format that the first records match; None for plain rows."""
    sample = records[:_DETECTION_RECORDS]
    if not sample or not all(isinstance(record, dict) for record in sample):
        return None
    return next((export for export in FORMATS if all(map(export.matches, sample))), None)


def _is_label_studio_task(record: Record) -> bool:
    lists = [record[key] for key in _TASK_LISTS if record.get(key) is not None]
    return (
        isinstance(record.get("data"), dict)
        and bool(lists)
        and all(isinstance(annotations, list) for annotations in lists)
        and all(_is_annotation(annotation) for annotations in lists for annotation in annotations)
    )


def _is_annotation(annotation: Any) -> bool:
    """Return whether this is an annotation or prediction of Label Studio; short exports give only its id."""
    if not isinstance(annotation, dict):
        return isinstance(annotation, int)
    regions = annotation.get("result")
    return regions is None or (isinstance(regions, list) and all(isinstance(r, dict) for r in regions))


def _read_label_studio_task(record: Record) -> AnnotatedRecord:
    """Read a Label Studio task: its data, and a column for each control that labels the whole task."""
    annotations = record.get("annotations", record.get("completions")) or []
    submitted = [entry for entry in annotations if isinstance(entry, dict) and not entry.get("was_cancelled")]
    parsed = [_parse_regions(annotation.get("result") or []) for annotation in submitted]
    answers = [cells for cells, _ in parsed if cells]
    first = answers[0] if answers else {}
    data = {f"data.{key}" if key in first else key: value for key, value in record["data"].items()}
    spans = frozenset(span for _, spans_of_annotation in parsed for span in spans_of_annotation)
    disagree = any(cells != first for cells in answers)
    return AnnotatedRecord({**data, **first}, tuple(first), disagree, spans)


def _parse_regions(regions: Sequence[Any]) -> tuple[Record, set[str]]:
    """Return the answers of one Label Studio annotation by control, and the types of its spans."""
    cells: Record = {}
    lists: dict[str, list[list[Any]]] = {}
    spans: set[str] = set()
    for region in regions:
        kind, value, name = region.get("type"), region.get("value"), region.get("from_name")
        key = "text" if kind == "textarea" else kind
        if not isinstance(value, dict) or not isinstance(name, str):
            continue
        if key not in _TASK_LABEL_TYPES or key not in value:
            spans.add(str(kind))
            continue
        answer = value[key]
        if kind == "taxonomy" and isinstance(answer, list):
            answer = [" / ".join(map(str, path)) if isinstance(path, list) else path for path in answer]
        if kind == "textarea" and isinstance(answer, list):
            answer = "\n".join(map(str, answer))
        if isinstance(answer, list):
            lists.setdefault(name, []).append(answer)
        else:
            lists.pop(name, None)
        cells[name] = answer
    merged = {name: _merge_unique(answers) for name, answers in lists.items() if len(answers) > 1}
    return cells | merged, spans


def _merge_unique(lists: Sequence[list[Any]]) -> list[Any]:
    """Return the entries of all lists, each once; entries may be unhashable lists or objects."""
    entries: dict[str, Any] = {}
    for entry in itertools.chain.from_iterable(lists):
        entries.setdefault(json.dumps(entry, sort_keys=True), entry)
    return list(entries.values())


def _is_label_studio_min(record: Record) -> bool:
    has_keys = {"annotator", "annotation_id", "lead_time"} <= record.keys()
    return has_keys and isinstance(record["lead_time"], int | float | None)


def _read_label_studio_min(record: Record) -> AnnotatedRecord:
    """Read a task of Label Studio's JSON_MIN, where answers are beside the data and choices in an object."""
    metadata = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"}
    cells: Record = {}
    labels: list[str] = []
    spans: set[str] = set()
    for key, value in record.items():
        if key in metadata:
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
    return AnnotatedRecord(cells, tuple(labels), spans=frozenset(spans))


def _is_doccano(record: Record) -> bool:
    text = record.get("text", record.get("data"))
    lists = [record[key] for key in ("label", "labels", "annotations", "entities") if key in record]
    return (
        isinstance(text, str)
        and "id" in record
        and set(record) <= _DOCCANO_KEYS
        and bool(lists)
        and all(isinstance(labels, list) for labels in lists)
        and all(_is_doccano_label(label) for labels in lists for label in labels)
    )


def _is_doccano_label(label: Any) -> bool:
    """Return whether this is a label, a span `[start, end, label]`, or an object with either."""
    if isinstance(label, list):
        return len(label) == 3 and isinstance(label[0], int) and isinstance(label[1], int)
    if isinstance(label, dict):
        return "label" in label or "start_offset" in label
    return isinstance(label, str | int)


def _read_doccano(record: Record) -> AnnotatedRecord:
    """Read a Doccano record: its text and labels, or no labels if it has spans or entities."""
    labels = record.get("label", record.get("labels", record.get("annotations"))) or []
    spans = {"spans" for part in labels if isinstance(part, list)}
    spans |= {"spans" for part in labels if isinstance(part, dict) and "start_offset" in part}
    spans |= {"entities"} if record.get("entities") else set()
    names = [part.get("label") if isinstance(part, dict) else part for part in labels]
    cells = {"text": record.get("text", record.get("data")), "label": [] if spans else names}
    return AnnotatedRecord(cells, () if spans else ("label",), spans=frozenset(spans))


def _is_argilla(record: Record) -> bool:
    has_keys = isinstance(record.get("fields"), dict) and ("responses" in record or "suggestions" in record)
    return has_keys and _are_responses(record.get("responses"))


def _are_responses(responses: Any) -> bool:
    """Return whether these are answers by question (Argilla 2) or objects of a user's answers (Argilla 1)."""
    if isinstance(responses, dict):
        return all(isinstance(answers, list | None) for answers in responses.values())
    answers = responses if isinstance(responses, list) else [responses]
    if responses is None:
        return True
    return all(
        isinstance(answer, dict) and isinstance(answer.get("values"), dict | None) for answer in answers
    )


def _read_argilla(record: Record) -> AnnotatedRecord:
    """Read a record of Argilla: its fields, and the first response to each question."""
    responses: dict[str, list[Any]] = {}
    if isinstance(record.get("responses"), dict):
        for question, answers in record["responses"].items():
            responses[question] = [_answer_value(answer) for answer in answers or [] if _is_submitted(answer)]
    for answer in record["responses"] if isinstance(record.get("responses"), list) else []:
        if _is_submitted(answer):
            for question, response in (answer.get("values") or {}).items():
                responses.setdefault(question, []).append(_answer_value(response))
    return _first_responses(record["fields"], responses)


def _is_flat_argilla(record: Record) -> bool:
    columns = [key for key in record if key.endswith(".responses")]
    if not columns:
        return any(map(_is_response_list, record.values()))
    if not all(f"{key}.users" in record for key in columns):
        return False
    return all(isinstance(record[name], list | None) for key in columns for name in (key, f"{key}.users"))


def _read_flat_argilla(record: Record) -> AnnotatedRecord:
    """Read a row of Argilla's `to_datasets`: `label.responses` beside its users, or a list of responses."""
    fields: Record = {}
    responses: dict[str, list[Any]] = {}
    for key, value in record.items():
        if key.endswith(".responses"):
            responses[key.removesuffix(".responses")] = list(value or [])
        elif _is_response_list(value):
            responses[key] = [_answer_value(answer) for answer in value if _is_submitted(answer)]
        elif ".responses." not in key and ".suggestion" not in key and "-suggestion" not in key:
            fields[key] = value
    metadata = {
        "id", "status", "external_id", "_server_id", "inserted_at", "updated_at", "metadata", "vectors",
    }  # fmt: skip
    return _first_responses({key: value for key, value in fields.items() if key not in metadata}, responses)


def _is_argilla_1(record: Record) -> bool:
    has_keys = {"annotation", "prediction"} <= record.keys()
    has_text = isinstance(record.get("text"), str) or isinstance(record.get("inputs"), dict)
    return has_keys and has_text and isinstance(record["prediction"], list | None)


def _read_argilla_1(record: Record) -> AnnotatedRecord:
    """Read a record of Argilla 1: one text or several inputs, and one annotation."""
    inputs, text, label = record.get("inputs"), record.get("text"), record["annotation"]
    fields = {"text": text} if isinstance(text, str) else dict(inputs or {})
    has_spans = isinstance(label, list) and any(isinstance(entry, list) for entry in label)
    spans = frozenset({"spans"} if has_spans else ())
    return AnnotatedRecord(
        {**fields, "label": None if spans else label}, () if spans else ("label",), spans=spans
    )


def _first_responses(fields: Record, responses: dict[str, list[Any]]) -> AnnotatedRecord:
    """Return the fields with the first response to each question as a label column."""
    first = {question: answers[0] if answers else None for question, answers in responses.items()}
    disagree = any(answer != first[question] for question, answers in responses.items() for answer in answers)
    cells = {f"fields.{key}" if key in first else key: value for key, value in fields.items()}
    spans = frozenset(
        "spans"
        for response in first.values()
        if isinstance(response, list) and any(isinstance(entry, dict) for entry in response)
    )
    return AnnotatedRecord({**cells, **first}, tuple(key for key in first if not spans), disagree, spans)


def _is_response_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and {"value", "user_id"} <= part.keys() for part in value)
    )


def _is_submitted(answer: Any) -> bool:
    return not isinstance(answer, dict) or answer.get("status") in (None, "submitted")


def _answer_value(answer: Any) -> Any:
    return answer.get("value") if isinstance(answer, dict) else answer


FORMATS = (
    ExportFormat("Label Studio", _is_label_studio_task, _read_label_studio_task),
    ExportFormat("Label Studio", _is_label_studio_min, _read_label_studio_min),
    ExportFormat("Argilla", _is_argilla, _read_argilla),
    ExportFormat("Argilla", _is_argilla_1, _read_argilla_1),
    ExportFormat("Argilla", _is_flat_argilla, _read_flat_argilla),
    ExportFormat("Doccano", _is_doccano, _read_doccano),
)
