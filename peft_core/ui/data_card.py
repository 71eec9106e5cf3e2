"""The second card of the form: choose or upload the data, inspect it, and answer the audit's findings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from peft_core.config import BASE_HEADS, DECIMAL_MARKS, PROBLEM_TYPES, REMEDIES, SETTINGS
from peft_core.data.formats import FILE_TYPES
from peft_core.data.uploads import dataset_label
from peft_core.errors import PeftCoreError
from peft_core.models.presets import DATASETS, DEFAULT_ROWS, RECOMMENDED_SETTINGS, recommended_settings
from peft_core.service.workbench import Workbench
from peft_core.ui.events import FOLLOWING, PRIVATE, set_values
from peft_core.ui.fields import DEFAULTS, Form, field, fields
from peft_core.views.components import message
from peft_core.views.data import data_facts, data_findings, data_preview

COLUMNS = ("text_column", "text_pair_column", "label_column")
GUESSED = (
    *COLUMNS,
    "problem_type",
    "label_separator",
    "decimal_mark",
    "dataset_config_name",
    "sheet_name",
)  # an empty text leaves them open
_ANSWERS = ("label_columns", "decimal_mark", "base_head")  # shown where a finding asks for them
_SPLITS = ("train_split", "validation_split", "eval_split")
_INSPECTED = (
    "dataset_name", "dataset_config_name", "sheet_name", "header_row", *_SPLITS, *COLUMNS, *_ANSWERS,
    "problem_type", "label_separator", "remedies",
    "split_seed", "max_train_samples", "max_eval_samples", "max_length", "class_weight",
)  # fmt: skip
_READ_ALONG = ("model_name_or_path", "revision")
_GUESS = "Guessed"


@dataclass(frozen=True)
class DataCard:
    """The card's components beside the form's fields; `rows` holds the number of training rows."""

    upload: gr.File
    facts: gr.HTML
    preview: gr.HTML
    findings: gr.HTML
    balance: gr.Button
    rows: gr.State


def build_data_card(form: Form, workbench: Workbench) -> DataCard:
    """Build the layout and add the fields of the data settings to the form."""
    form["dataset_name"] = gr.Dropdown(
        _dataset_choices(),
        value=DEFAULTS.dataset_name,
        label=SETTINGS["dataset_name"].label,
        info=_info(workbench),
        allow_custom_value=True,
        elem_id="dataset_name",
    )
    upload = gr.File(
        file_count="multiple",
        file_types=list(FILE_TYPES),
        label="Or upload CSV, TSV, JSON, JSONL, Parquet, Excel, .gz, .zip",
        height=130,
        elem_id="upload",
    )
    facts = gr.HTML(elem_id="data-facts")
    _build_sheet(form)
    with gr.Row():
        form["text_column"], form["label_column"] = _picker("text_column"), _picker("label_column")
    with gr.Row():
        form["problem_type"] = gr.Dropdown(
            [(_GUESS, ""), *((label, name) for name, label in PROBLEM_TYPES.items())],
            value="",
            label=SETTINGS["problem_type"].label,
            elem_id="problem_type",
        )
        form["text_pair_column"] = _picker("text_pair_column")
    form["label_separator"] = field("label_separator", visible=False)
    findings = gr.HTML(elem_id="data-findings")
    _build_answers(form)
    balance = gr.Button("Balance the class weights", size="sm", visible=False, elem_id="balance")
    form["remedies"] = gr.CheckboxGroup(
        _remedy_choices({}), value=[], label=SETTINGS["remedies"].label, visible=False, elem_id="remedies"
    )
    preview = gr.HTML(elem_id="data-preview")
    fields(form, ("max_train_samples", "max_eval_samples"), ("class_weight", "num_labels"))
    with gr.Accordion("Splits", open=False, elem_classes="more"):
        _build_splits(form, workbench)
    return DataCard(upload, facts, preview, findings, balance, gr.State(DEFAULT_ROWS))


def _build_sheet(form: Form) -> None:
    """Build the sheet of a workbook and the header row, hidden until a file has them."""
    with gr.Row():
        form["sheet_name"] = gr.Dropdown(
            [(_GUESS, "")],
            value="",
            label=SETTINGS["sheet_name"].label,
            allow_custom_value=True,
            visible=False,
            min_width=150,
            elem_id="sheet_name",
        )
        form["header_row"] = field("header_row", visible=False, precision=0, min_width=150)


def _build_splits(form: Form, workbench: Workbench) -> None:
    with gr.Row():
        form["train_split"], form["validation_split"] = _split("train_split"), _split("validation_split")
    with gr.Row():
        form["eval_split"], form["split_seed"] = _split("eval_split"), field("split_seed")
    form["dataset_config_name"] = gr.Dropdown(
        [("None", "")],
        value="",
        label=SETTINGS["dataset_config_name"].label,
        info=SETTINGS["dataset_config_name"].help,
        allow_custom_value=True,
        visible=workbench.limits is None,
        elem_id="dataset_config_name",
    )


def _build_answers(form: Form) -> None:
    """Build the fields that answer a finding, hidden until a finding asks for them."""
    form["label_columns"] = field("label_columns", visible=False)
    for name, choices in (("decimal_mark", DECIMAL_MARKS), ("base_head", BASE_HEADS)):
        guess = [(_GUESS, "")] if name in GUESSED else []
        form[name] = gr.Dropdown(
            [*guess, *((label, key) for key, label in choices.items())],
            value=getattr(DEFAULTS, name) or "",
            label=SETTINGS[name].label,
            info=SETTINGS[name].help,
            visible=False,
            elem_id=name,
        )


def wire_data_card(
    card: DataCard,
    form: Form,
    accordion: gr.Accordion,
    model_facts: gr.HTML,
    workbench: Workbench,
    go: gr.Button,
) -> None:
    """Wire the upload, and the inspection of the data after every change while the card is open.

    A change of the base model triggers an inspection once its facts are shown, since its tokenizer and head
    are known then. `go` is disabled until an upload is read: it must not train on the data chosen before.
    """
    opened = gr.Checkbox(False, visible="hidden")  # a closed card sends no request to the worker or the Hub
    inspected = [form[name] for name in (*_INSPECTED, *_READ_ALONG)]
    outputs = [
        card.facts,
        card.preview,
        card.findings,
        card.balance,
        form["remedies"],
        form["dataset_config_name"],
        form["label_separator"],
        form["sheet_name"],
        form["header_row"],
    ]
    outputs += [form[name] for name in (*COLUMNS, *_SPLITS, *_ANSWERS)]

    def inspect(values: dict) -> dict[Any, Any]:
        return _inspect(card, form, workbench, values) if values[opened] else {card.facts: gr.skip()}

    set_values([accordion.expand], {opened: True})
    set_values([accordion.collapse], {opened: False})
    changes = [opened.change, model_facts.change, *(form[name].change for name in _INSPECTED)]
    gr.on(changes, inspect, {opened, *inspected}, outputs, **FOLLOWING)
    _wire_upload(card, form, workbench, go)
    balanced = {form["class_weight"]: "balanced", card.balance: gr.update(visible=False)}
    card.balance.click(lambda: balanced, None, list(balanced), **PRIVATE)


def _wire_upload(card: DataCard, form: Form, workbench: Workbench, go: gr.Button) -> None:
    """Make an upload the data set; removing it restores the default data set."""

    def store(paths: list[str] | None, method: str, modules: list[str]) -> dict[Any, Any]:
        try:
            folder = workbench.upload([Path(path) for path in paths or []], link=True)
        except PeftCoreError as error:
            return _error_updates(card, error)
        choices = [(dataset_label(folder), folder), *_dataset_choices()]
        return {
            form["dataset_name"]: gr.update(choices=choices, value=folder),
            **_recommended_updates(card, form, _count_rows(workbench, folder), method, modules),
            **_initial_values(form),
        }

    def remove(method: str, modules: list[str]) -> dict[Any, Any]:
        recommended = _recommended_updates(card, form, DEFAULT_ROWS, method, modules)
        hidden = {card.balance: gr.update(visible=False)}
        return {**recommended, **hidden, form["dataset_name"]: DEFAULTS.dataset_name, **_initial_values(form)}

    recommended_fields = [form[name] for name in RECOMMENDED_SETTINGS]
    outputs = [*recommended_fields, card.rows, form["dataset_name"], *_initial_values(form)]
    outputs += [card.facts, card.preview, card.findings, card.balance]
    chosen = [form["method"], form["target_modules"]]
    wait = card.upload.upload(
        lambda: (None, gr.update(interactive=False)), None, [form["dataset_name"], go], queue=False, **PRIVATE
    )
    reading = wait.then(store, [card.upload, *chosen], outputs, **PRIVATE)
    reading.then(lambda: gr.update(interactive=True), None, go, queue=False, **PRIVATE)
    card.upload.clear(remove, chosen, outputs, **PRIVATE)


def _inspect(card: DataCard, form: Form, workbench: Workbench, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return updates that show the data that these values name."""
    settings = {name: values[form[name]] for name in (*_INSPECTED, *_READ_ALONG)}
    try:
        data = workbench.inspect(settings)
    except PeftCoreError as error:
        return _error_updates(card, error)
    counts = {finding["remedy"]: finding["count"] for finding in data.get("findings", ())}
    uneven = any(finding["kind"] == "imbalance" for finding in data.get("findings", ()))
    chosen = settings["remedies"]
    return {
        card.facts: data_facts(data),
        card.preview: data_preview(data),
        card.findings: data_findings(data["findings"]) if "findings" in data else "",
        card.balance: gr.update(visible=uneven and settings["class_weight"] == DEFAULTS.class_weight),
        form["remedies"]: gr.update(
            choices=_remedy_choices(counts), visible=bool(chosen or set(counts) - {None})
        ),
        form["dataset_config_name"]: gr.update(choices=[("None", ""), *data["configs"]]),
        form["label_separator"]: gr.update(visible=_takes_separator(settings, data)),
        form["sheet_name"]: gr.update(
            choices=_sheet_choices(data), visible=bool(_sheets(data) or settings["sheet_name"])
        ),
        form["header_row"]: gr.update(visible=_has_header_row(data) or bool(settings["header_row"])),
        **{form[name]: gr.update(choices=_column_choices(data, name)) for name in COLUMNS},
        **_answer_updates(form, data, settings),
        **{form[name]: gr.update(choices=_split_choices(data, name)) for name in _SPLITS},
    }


def _answer_updates(form: Form, data: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[Any, Any]:
    """Return updates that show the fields that findings ask for, and those that were answered."""
    needed = {finding["setting"] for finding in data.get("findings", ())}
    answered = {name for name in _ANSWERS if _is_answered(settings, name)}
    updates = {form[name]: gr.update(visible=name in needed | answered) for name in _ANSWERS}
    flags = [column["name"] for column in data["columns"] if column["zero_one"]]
    choices = list(dict.fromkeys([*flags, *settings["label_columns"]]))
    visible = len(flags) > 1 or bool(settings["label_columns"])
    return {**updates, form["label_columns"]: gr.update(choices=choices, visible=visible)}


def _is_answered(settings: Mapping[str, Any], name: str) -> bool:
    return (settings[name] or None) not in (None, getattr(DEFAULTS, name))


def _error_updates(card: DataCard, error: PeftCoreError) -> dict[Any, Any]:
    """Return updates that show an error in place of the data."""
    hidden = gr.update(visible=False)
    return {card.facts: message(str(error)), card.preview: "", card.findings: "", card.balance: hidden}


def _count_rows(workbench: Workbench, folder: str) -> int:
    """Return the training rows of an upload; `DEFAULT_ROWS` if they cannot be counted."""
    try:
        rows = workbench.inspect({"dataset_name": folder}).get("used", {}).get("train")
    except PeftCoreError:
        rows = None
    return rows or DEFAULT_ROWS


def _recommended_updates(
    card: DataCard, form: Form, rows: int, method: str, modules: list[str]
) -> dict[Any, Any]:
    """Return the recommended values for so many training rows, by field."""
    recommended = recommended_settings(method, rows, modules)
    return {card.rows: rows, **{form[name]: setting for name, setting in recommended.items()}}


def _picker(name: str) -> gr.Dropdown:
    """Return the choice of a column; an empty text leaves it to be inferred."""
    return gr.Dropdown(
        [(_empty_label(name), "")],
        value="",
        label=SETTINGS[name].label,
        allow_custom_value=True,
        min_width=150,
        elem_id=name,
    )


def _split(name: str) -> gr.Dropdown:
    return gr.Dropdown(
        [getattr(DEFAULTS, name)],
        value=getattr(DEFAULTS, name),
        label=SETTINGS[name].label,
        info=SETTINGS[name].help,
        allow_custom_value=True,
        min_width=150,
        elem_id=name,
    )


def _empty_label(name: str) -> str:
    return "None" if name == "text_pair_column" else _GUESS


def _dataset_choices() -> list[tuple[str, str]]:
    return [(preset.label, name) for name, preset in DATASETS.items()]


def _info(workbench: Workbench) -> str:
    if workbench.limits is None:
        return SETTINGS["dataset_name"].help
    return f"This public demo offers these, or your own files below. {workbench.limits.describe_uploads()}"


def _initial_values(form: Form) -> dict[Any, Any]:
    """Return initial values of columns, problem type and splits, so that all are inferred again."""
    defaults = {form[name]: getattr(DEFAULTS, name) for name in (*_SPLITS, "class_weight", "base_head")}
    empty = {form[name]: [] for name in ("remedies", "label_columns")}
    guessed = dict.fromkeys((form[name] for name in GUESSED), "")
    return {**guessed, **empty, form["header_row"]: None, **defaults}


def _takes_separator(settings: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    in_force = data.get("in_force", {})
    is_multi_label = in_force.get("problem_type") == "multi_label_classification"
    return is_multi_label and not in_force["label_columns"] or bool(settings["label_separator"])


def _sheets(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the sheets of all workbooks."""
    return list(dict.fromkeys(sheet for facts in data.get("files", ()) for sheet in facts.get("sheets", ())))


def _sheet_choices(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the choices of a sheet; the first is the sheet that is read if none is chosen."""
    read = next((facts["sheet"] for facts in data.get("files", ()) if "sheet" in facts), None)
    return [(f"{_GUESS}: {read}" if read else _GUESS, ""), *((sheet, sheet) for sheet in _sheets(data))]


def _has_header_row(data: Mapping[str, Any]) -> bool:
    """Return whether the header row of a file can be chosen: of a sheet, or of delimited text."""
    return any("sheet" in facts or "delimiter" in facts for facts in data.get("files", ()))


def _remedy_choices(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every remedy, with the number of rows that it changes."""
    return [
        (f"{words} ({counts[name]:,})" if name in counts else words, name) for name, words in REMEDIES.items()
    ]


def _column_choices(data: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """Return the columns, each with a sample; the first choice is the inferred column."""
    guess = data.get("in_force", {}).get(name) if name in data.get("guessed", ()) else None
    if name == "label_column" and "label_columns" in data.get("guessed", ()):
        guess = ", ".join(data["in_force"]["label_columns"])
    choices = [(f"{_GUESS}: {guess}" if guess else _empty_label(name), "")]
    for column in data["columns"]:
        sample = column["samples"][0] if column["samples"] else ""
        choices.append((f"{column['name']} · {sample[:40]}" if sample else column["name"], column["name"]))
    return choices


def _split_choices(data: Mapping[str, Any], name: str) -> list[str]:
    return list(dict.fromkeys([*data["split_choices"], getattr(DEFAULTS, name)]))
