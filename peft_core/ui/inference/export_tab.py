"""The export tab: exports that are written and checked in the run's folder, the Hub, and the code."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from peft_core.errors import PeftCoreError
from peft_core.service.workbench import Workbench
from peft_core.ui.code import api_access, code_kinds, code_update, code_view
from peft_core.ui.events import (
    FOLLOWING,
    PICK_A_RUN,
    PRIVATE,
    Trigger,
    cancel_pending,
    download_by_click,
    set_values,
)
from peft_core.views.components import message, task_progress
from peft_core.views.export_reports import (
    embeddings_report,
    neighbors_table,
    onnx_report,
    page_report,
    push_report,
)

EMBEDDINGS = (
    "The adapted encoder without its head: sentence vectors for search, read by sentence-transformers."
)
ONNX = "Two files for ONNX Runtime, float32 and int8, evaluated on the test rows before you download them."
PAGE = (
    "A folder with one HTML page that runs the classifier in the visitor's browser: host it anywhere that "
    "serves files. The text never leaves the visitor's machine. A few short test rows become its examples, "
    "which anyone who opens the page can read."
)
HUB = "Under your own account, with a generated model card. The token is used once and is not stored."
PUSHED = [("Adapter", "adapter"), ("Merged model", "merged")]


def build_export_tab(
    workbench: Workbench, picker: gr.Radio, run_version: gr.State, tab: gr.Tab
) -> list[gr.Button]:
    """Build exports on the left, Hub and code on the right; return the buttons that write into the run."""
    triggers: list[Trigger] = [tab.select, run_version.change]
    exporter = partial(_build_exporter, workbench, picker, triggers)
    with gr.Row():
        with gr.Column():
            _build_zips(workbench, picker)
            with gr.Accordion("ONNX", open=True):
                drop = gr.Number(0.5, label="Maximum drop, points", elem_id="max-drop")
                onnx = exporter("onnx", ONNX, onnx_report, options={"max_drop": drop})
            with gr.Accordion("Embeddings", open=False):
                embeddings = exporter("embeddings", EMBEDDINGS, embeddings_report)
                _build_search(workbench, picker)
            with gr.Accordion("Web page", open=False):
                page = exporter("page", PAGE, page_report)
        with gr.Column():
            with gr.Accordion("Push to the Hub", open=True):
                push = _build_push(workbench, picker)
            with gr.Accordion("Code", open=True):
                script = _build_code(workbench, picker, triggers)
    return [onnx, embeddings, page, push, script]


def _build_zips(workbench: Workbench, picker: gr.Radio) -> None:
    with gr.Row():
        for kind, title in (("adapter", "Adapter zip"), ("merged", "Merged zip")):
            button = gr.Button(title, elem_id=f"take-{kind}")
            download_by_click(button, partial(workbench.archive, kind=kind), [picker], f"taken-{kind}")


def _build_exporter(
    workbench: Workbench,
    picker: gr.Radio,
    triggers: list[Trigger],
    kind: str,
    description: str,
    render: Callable[[dict[str, Any]], str],
    *,
    options: dict[str, gr.Number] | None = None,
) -> gr.Button:
    """Build a button that writes an export, its report, and its download; return the button.

    Args:
        workbench: writes the export.
        picker: the run.
        triggers: events after which the download may have become possible.
        kind: of the export.
        description: a sentence above the button.
        render: returns HTML of the export's report.
        options: the components of the export's options, by name.
    """
    gr.HTML(f'<p class="quiet">{description}</p>')
    with gr.Row():
        make = gr.Button("Export", elem_id=f"make-{kind}", variant="primary")
        download = gr.Button("Download zip", elem_id=f"take-{kind}", interactive=False)
    output = gr.HTML(elem_id=f"made-{kind}")
    components = options or {}

    def export(run_id: str | None, *values: Any) -> Iterator[str]:
        if not run_id:
            yield PICK_A_RUN
            return
        export_report: dict[str, Any] = {}
        try:
            for report in workbench.make(kind, run_id, **dict(zip(components, values, strict=True))):
                export_report = report.result
                yield task_progress(report.share, report.description)
            yield render(export_report)
        except PeftCoreError as error:
            yield message(str(error))

    def offer_download(run_id: str | None) -> Any:
        return gr.update(interactive=workbench.holds(run_id, kind))

    set_values([make.click], {download: gr.update(interactive=False)})
    exporting = make.click(export, [picker, *components.values()], output, **PRIVATE)
    for ended in (exporting.then, exporting.failure):
        ended(offer_download, picker, download, **FOLLOWING)
    cancel_pending(picker.change, exporting)
    set_values([picker.change], {output: ""})
    gr.on(triggers, offer_download, picker, download, **FOLLOWING)
    download_by_click(download, partial(workbench.archive, kind=kind), [picker], f"taken-{kind}")
    return make


def _build_search(workbench: Workbench, picker: gr.Radio) -> None:
    """Build a search of the test rows: the nearest rows under the base and the adapted encoder."""
    with gr.Row():
        query = gr.Textbox(label="Search the test rows by meaning", elem_id="neighbours-query", scale=4)
        search_button = gr.Button("Search", elem_id="neighbours-go", scale=1)
    output = gr.HTML(elem_id="neighbours")

    def search(run_id: str | None, typed: str) -> str:
        if not run_id:
            return PICK_A_RUN
        try:
            return neighbors_table(workbench.neighbors(typed, run_id))
        except PeftCoreError as error:
            return message(str(error))

    triggers = [search_button.click, query.submit]
    searching = gr.on(triggers, search, [picker, query], output, **FOLLOWING)
    cancel_pending(picker.change, searching)
    set_values([picker.change], {output: ""})


def _build_push(workbench: Workbench, picker: gr.Radio) -> gr.Button:
    """Build the fields of a push to the Hub; return its button."""
    gr.HTML(f'<p class="quiet">{HUB}</p>')
    kind = gr.Radio(PUSHED, value="adapter", show_label=False, elem_id="push-kind")
    with gr.Row():
        name = gr.Textbox(label="Repository", placeholder="name, or owner/name", elem_id="push-name")
        token = gr.Textbox(label="Hub token with write rights", type="password", elem_id="push-token")
    with gr.Row():
        private = gr.Checkbox(True, label="Private", elem_id="push-private")
        overwrite = gr.Checkbox(False, label="Overwrite existing files", elem_id="push-overwrite")
        go = gr.Button("Push", variant="primary", elem_id="push")
    output = gr.HTML(elem_id="pushed")

    def push(run_id: str | None, *values: Any) -> Iterator[list[Any]]:
        if not run_id:
            yield [PICK_A_RUN, gr.skip()]
            return
        upload: dict[str, Any] = {}
        try:
            for report in workbench.push(run_id, *values):
                upload = report.result
                yield [task_progress(report.share, report.description), ""]
            yield [push_report(upload), ""]
        except PeftCoreError as error:
            yield [message(str(error)), gr.skip()]

    go.click(push, [picker, kind, name, token, private, overwrite], [output, token], **PRIVATE)
    return go


def _build_code(workbench: Workbench, picker: gr.Radio, triggers: list[Trigger]) -> gr.Button:
    """Build the script that reproduces the run, and calls of the app's API with the run's id.

    Return the button that downloads the script.
    """
    kind = code_kinds("This run, in plain Python", "code-kind")
    code = code_view("code")
    with gr.Row():
        download = gr.Button("Download the script and its rows", elem_id="take-script")

    def write(run_id: str | None, chosen: str, request: gr.Request) -> Any:
        if not run_id:
            return gr.update(value="")
        access = api_access(workbench, request)
        return code_update(lambda: workbench.code(run_id, chosen, access), chosen)

    gr.on([*triggers, kind.input], write, [picker, kind], code, **FOLLOWING)
    download_by_click(download, partial(workbench.archive, kind="script"), [picker], "taken-script")
    return download
