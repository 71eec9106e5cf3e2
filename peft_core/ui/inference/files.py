"""A file of texts: its columns, the prediction with its progress and Cancel, and the file that comes out."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from peft_core.data.formats import FILE_TYPES, suffix_of
from peft_core.downloads import describe_os_errors
from peft_core.errors import PeftCoreError
from peft_core.pictures.inference import file_result
from peft_core.pictures.pieces import message, working
from peft_core.ui.downloads import download_cache
from peft_core.ui.events import PICK_A_RUN, PRIVATE, at_once, drop_answers, then_at_once
from peft_core.workbench import Workbench

HELP = (
    "CSV, TSV, JSON, JSONL, Parquet or Excel, also as .gz or .zip. The same rows come back in their order, "
    "with label, confidence and the probability of each label."
)
_GUESSED = "Guessed"
_ROW = "Of the sheet, or line of the CSV; guessed if 0."
_WITH_HEADER_ROW = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".xlsx")
VARIANTS = [("Adapter", "adapter"), ("Merged", "merged"), ("Base", "base")]


@dataclass(frozen=True)
class FileForm:
    """The file, its columns (text, second text, label), and the model that reads it."""

    upload: gr.File
    columns: list[gr.Dropdown]
    variant: gr.Radio
    exact: gr.Checkbox
    sheet_name: gr.Dropdown
    header_row: gr.Number


def build_files(workbench: Workbench, picker: gr.Radio, standing: gr.State) -> gr.Button:
    """The upload and its columns on the left, what comes of it on the right; returns its button."""
    with gr.Row():
        with gr.Column(scale=5):
            form = _file_form()
            with gr.Row():
                go = gr.Button("Predict the file", variant="primary", elem_id="predict-file")
                stop = gr.Button("Cancel", elem_id="cancel-file", interactive=False)
        with gr.Column(scale=5):
            shown = gr.HTML(elem_id="file-shown")
            result = gr.DownloadButton("Download", visible=False, elem_id="get-file", variant="primary")
    job, columns = gr.State(), form.columns

    def open_file(path: str | None, run_id: str | None) -> dict[Any, Any]:
        """A new file's columns; its sheet and its header row are guessed."""
        takes_row = suffix_of(path or "") in _WITH_HEADER_ROW
        row = gr.update(value=None, visible=takes_row)
        sheets = {"choices": [(_GUESSED, "")], "value": "", "visible": False}
        return {form.header_row: row, **look(path, run_id, "", None, sheets)}

    def look(
        path: str | None,
        run_id: str | None,
        sheet_name: str | None,
        header_row: int | None,
        sheets: dict[str, Any] | None = None,
    ) -> dict[Any, Any]:
        nothing = {column: gr.update(choices=[], value=None) for column in columns}
        nothing |= {form.sheet_name: gr.update(**sheets)} if sheets else {}
        if not path:
            return nothing
        if not run_id:
            return {**nothing, shown: PICK_A_RUN}
        try:
            preview = workbench.look_at_file(Path(path), run_id, sheet_name, header_row)
        except PeftCoreError as error:
            return {**nothing, shown: message(str(error))}
        if sheets and "sheets" in preview:
            choices = [(f"{_GUESSED}: {preview['sheet']}", ""), *((name, name) for name in preview["sheets"])]
            nothing[form.sheet_name] = gr.update(**{**sheets, "choices": choices, "visible": True})
        return {**nothing, **_choices(preview, columns, bool(workbench.result_of(run_id).get("text_pair")))}

    def predict(
        path: str | None, run_id: str | None, chosen: str, whole: bool, sheet: str, row: int, *names: str
    ) -> Iterator[dict[Any, Any]]:
        if not path or not run_id:
            yield {shown: message("Pick a run at the side and a file first.")}
            return
        name, hidden = secrets.token_hex(8), gr.update(visible=False)
        yield {job: name, stop: gr.update(interactive=True), result: hidden, shown: working(0.0, "Starting")}
        request = {**dict(zip(("text", "text_pair", "label"), names, strict=True)), "exact": whole}
        request |= {"sheet_name": sheet, "header_row": row}
        try:
            for report in workbench.predict_file(Path(path), run_id, chosen, request, name):
                done = report.result
                yield {shown: working(report.share, report.what)}
            with describe_os_errors("The predicted file"):
                download = download_cache().publish(Path(done["path"]))
            yield {shown: file_result(done, chosen), result: gr.update(visible=True, value=download)}
        except PeftCoreError as error:
            yield {shown: message(str(error))}
        finally:
            workbench.cancel(name)  # whoever closed the page waits for nothing any more
        yield {stop: gr.update(interactive=False)}

    file, changed = [form.upload, picker], [form.upload.change, standing.change]
    table = [form.sheet_name, form.header_row]
    cleared = {result: gr.update(visible=False), shown: ""}
    then_at_once(changed, open_file, file, [*table, *columns, shown], clear=cleared)
    chosen = [form.sheet_name.input, form.header_row.input]
    then_at_once(chosen, look, [*file, *table], [*columns, shown], clear=cleared)
    asked = [*file, form.variant, form.exact, *table, *columns]
    predicting = go.click(predict, asked, [job, stop, result, shown], **PRIVATE)
    drop_answers(picker.change, predicting)
    at_once([picker.change], {**cleared, stop: gr.update(interactive=False)})
    stop.click(lambda name: workbench.cancel(name) if name else None, job, None, **PRIVATE)
    return go


def _file_form() -> FileForm:
    """Layout alone."""
    upload = gr.File(label="A file of texts", file_types=list(FILE_TYPES), elem_id="file", height=130)
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
        info="Else a long file is answered in bfloat16 where this machine gains by it.",
        elem_id="file-exact",
    )
    return FileForm(upload, [text, pair, label], variant, exact, sheet_name, header_row)


def _choices(seen: dict[str, Any], columns: list[gr.Dropdown], pairs: bool) -> dict[Any, Any]:
    """The file's columns in each drop-down, with those that the run would read."""
    text, pair, label = columns
    names = [(name, name) for name in seen["columns"]]
    second = {"choices": names, "value": seen["text_pair"]} if pairs else {"choices": [], "value": None}
    return {
        text: gr.update(choices=names, value=seen["text"]),
        pair: gr.update(**second, visible=pairs),
        label: gr.update(choices=[("none", ""), *names], value=seen["label"] or ""),
    }
