"""Prediction of a file of texts: its columns, progress and Cancel, and the predicted file."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from peft_core.data.formats import FILE_TYPES, suffix_of
from peft_core.errors import PeftCoreError
from peft_core.service.downloads import translate_os_errors
from peft_core.service.workbench import Workbench
from peft_core.ui.downloads import download_cache
from peft_core.ui.events import PICK_A_RUN, PRIVATE, cancel_pending, set_values, set_values_then
from peft_core.views.components import message, task_progress
from peft_core.views.inference import file_result

HELP = (
    "CSV, TSV, JSON, JSONL, Parquet or Excel, also as .gz or .zip. The same rows come back in their order, "
    "with label, confidence and the probability of each label."
)
_GUESSED = "Guessed"
_ROW = "Row of the sheet or line of the CSV file; guessed if 0."
_WITH_HEADER_ROW = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".xlsx")
VARIANTS = [("Adapter", "adapter"), ("Merged", "merged"), ("Base", "base")]


@dataclass(frozen=True)
class FileForm:
    """The file, its columns (text, second text, label), and the model variant."""

    upload: gr.File
    columns: list[gr.Dropdown]
    variant: gr.Radio
    exact: gr.Checkbox
    sheet_name: gr.Dropdown
    header_row: gr.Number


def build_file_tab(workbench: Workbench, picker: gr.Radio, run_version: gr.State) -> gr.Button:
    """Build the upload and its columns on the left, the prediction on the right; return its button."""
    with gr.Row():
        with gr.Column(scale=5):
            form = _file_form()
            with gr.Row():
                go = gr.Button("Predict the file", variant="primary", elem_id="predict-file")
                stop = gr.Button("Cancel", elem_id="cancel-file", interactive=False)
        with gr.Column(scale=5):
            status = gr.HTML(elem_id="file-shown")
            download = gr.DownloadButton("Download", visible=False, elem_id="get-file", variant="primary")
    cleared = {download: gr.update(visible=False), status: ""}
    _wire_columns(workbench, picker, run_version, form, status, cleared=cleared)
    job = gr.State()

    def predict(
        path: str | None, run_id: str | None, variant: str, exact: bool, sheet: str, row: int, *names: str
    ) -> Iterator[dict[Any, Any]]:
        if not path or not run_id:
            yield {status: message("Pick a run at the side and a file first.")}
            return
        name, hidden = secrets.token_hex(8), gr.update(visible=False)
        start = task_progress(0.0, "Starting")
        yield {job: name, stop: gr.update(interactive=True), download: hidden, status: start}
        request = {**dict(zip(("text", "text_pair", "label"), names, strict=True)), "exact": exact}
        request |= {"sheet_name": sheet, "header_row": row}
        prediction: dict[str, Any] = {}
        try:
            for report in workbench.predict_file(Path(path), run_id, variant, request, name):
                prediction = report.result
                yield {status: task_progress(report.share, report.description)}
            with translate_os_errors("The predicted file"):
                published = download_cache().publish(Path(prediction["path"]))
            yield {
                status: file_result(prediction, variant),
                download: gr.update(visible=True, value=published),
            }
        except PeftCoreError as error:
            yield {status: message(str(error))}
        finally:
            workbench.cancel(name)  # ends the job of a page that was closed
        yield {stop: gr.update(interactive=False)}

    inputs = [form.upload, picker, form.variant, form.exact, form.sheet_name, form.header_row, *form.columns]
    predicting = go.click(predict, inputs, [job, stop, download, status], **PRIVATE)
    cancel_pending(picker.change, predicting)
    set_values([picker.change], {**cleared, stop: gr.update(interactive=False)})
    stop.click(lambda name: workbench.cancel(name) if name else None, job, None, **PRIVATE)
    return go


def _wire_columns(
    workbench: Workbench,
    picker: gr.Radio,
    run_version: gr.State,
    form: FileForm,
    status: gr.HTML,
    *,
    cleared: Mapping[Any, Any],
) -> None:
    """Show the columns of the file; `cleared` are values that a change of the file sets in the browser."""
    columns = form.columns

    def open_file(path: str | None, run_id: str | None) -> dict[Any, Any]:
        """Return updates with a new file's columns; its sheet and header row are inferred."""
        takes_row = suffix_of(path or "") in _WITH_HEADER_ROW
        row = gr.update(value=None, visible=takes_row)
        sheets = {"choices": [(_GUESSED, "")], "value": "", "visible": False}
        return {form.header_row: row, **preview_file(path, run_id, "", None, sheets)}

    def preview_file(
        path: str | None,
        run_id: str | None,
        sheet_name: str | None,
        header_row: int | None,
        sheets: dict[str, Any] | None = None,
    ) -> dict[Any, Any]:
        empty = {column: gr.update(choices=[], value=None) for column in columns}
        empty |= {form.sheet_name: gr.update(**sheets)} if sheets else {}
        if not path:
            return empty
        if not run_id:
            return {**empty, status: PICK_A_RUN}
        try:
            preview = workbench.preview_file(Path(path), run_id, sheet_name, header_row)
        except PeftCoreError as error:
            return {**empty, status: message(str(error))}
        if sheets and "sheets" in preview:
            choices = [(f"{_GUESSED}: {preview['sheet']}", ""), *((name, name) for name in preview["sheets"])]
            empty[form.sheet_name] = gr.update(**{**sheets, "choices": choices, "visible": True})
        has_pairs = bool(workbench.result_of(run_id).get("text_pair"))
        return {**empty, **_column_updates(preview, columns, has_pairs)}

    file, table = [form.upload, picker], [form.sheet_name, form.header_row]
    file_changes = [form.upload.change, run_version.change]
    set_values_then(file_changes, open_file, file, [*table, *columns, status], clear=cleared)
    table_changes = [form.sheet_name.input, form.header_row.input]
    set_values_then(table_changes, preview_file, [*file, *table], [*columns, status], clear=cleared)


def _file_form() -> FileForm:
    """Build the layout."""
    upload = gr.File(label="File of texts", file_types=list(FILE_TYPES), elem_id="file", height=130)
    gr.HTML(f'<p class="quiet">{HELP}</p>')
    with gr.Row():
        text = gr.Dropdown([], label="Text column", elem_id="file-text")
        pair = gr.Dropdown([], label="Second text", elem_id="file-pair", visible=False)
        label = gr.Dropdown([], label="Label column", info="Empty: no metrics.", elem_id="file-label")
    with gr.Row():
        sheet_name = gr.Dropdown(
            [(_GUESSED, "")], value="", label="Sheet", elem_id="file-sheet", visible=False
        )
        header_row = gr.Number(None, label="Header row", info=_ROW, precision=0, visible=False, minimum=0)
    variant = gr.Radio(VARIANTS, value="adapter", label="Model", elem_id="file-model")
    exact = gr.Checkbox(
        False,
        label="Float32 throughout",
        info="Otherwise a long file is predicted in bfloat16 if that is faster on this machine.",
        elem_id="file-exact",
    )
    return FileForm(upload, [text, pair, label], variant, exact, sheet_name, header_row)


def _column_updates(preview: dict[str, Any], columns: list[gr.Dropdown], has_pairs: bool) -> dict[Any, Any]:
    """Return updates with the file's columns as choices, and the columns that the run would read."""
    text, pair, label = columns
    names = [(name, name) for name in preview["columns"]]
    second = (
        {"choices": names, "value": preview["text_pair"]} if has_pairs else {"choices": [], "value": None}
    )
    return {
        text: gr.update(choices=names, value=preview["text"]),
        pair: gr.update(**second, visible=has_pairs),
        label: gr.update(choices=[("none", ""), *names], value=preview["label"] or ""),
    }
