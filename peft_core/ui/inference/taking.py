"""What a person takes away: files made and proved in the run's folder, the Hub, and the code."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from peft_core.errors import PeftCoreError
from peft_core.pictures.pieces import message, working
from peft_core.pictures.taken import (
    embeddings_report,
    neighbours_table,
    onnx_report,
    page_report,
    pushed,
)
from peft_core.ui.code import api_access, code_kinds, code_view, shown
from peft_core.ui.events import FOLLOWING, PICK_A_RUN, PRIVATE, at_once, download_by_click, drop_answers
from peft_core.workbench import Workbench

EMBEDDINGS = (
    "The adapted encoder without its head: sentence vectors for search, read by sentence-transformers."
)
ONNX = "One file for ONNX Runtime in float32 and one in int8, judged on the test rows before you take them."
PAGE = (
    "A folder with one HTML page that runs the classifier in the visitor's browser: host it anywhere that "
    "serves files. The text never leaves the visitor's machine. A few short test rows become its examples, "
    "which whoever opens the page can read."
)
HUB = "Under your own account, with a model card that fills itself. The token is used once and kept nowhere."
PUSHED = [("Adapter", "adapter"), ("Merged model", "merged")]


def build_taking(workbench: Workbench, picker: gr.Radio, standing: gr.State, tab: gr.Tab) -> list[gr.Button]:
    """Files on the left, the Hub and the code on the right; returns the buttons that write into the run."""
    opened = [tab.select, standing.change]
    with gr.Row():
        with gr.Column():
            _zips(workbench, picker)
            with gr.Accordion("ONNX", open=True):
                drop = gr.Number(0.5, label="Largest drop, points", elem_id="max-drop")
                onnx = _maker(workbench, picker, opened, "onnx", ONNX, onnx_report, {"max_drop": drop})
            with gr.Accordion("Embeddings", open=False):
                embeddings = _maker(workbench, picker, opened, "embeddings", EMBEDDINGS, embeddings_report)
                _neighbours(workbench, picker)
            with gr.Accordion("A page of its own", open=False):
                page = _maker(workbench, picker, opened, "page", PAGE, page_report)
        with gr.Column():
            with gr.Accordion("Push to the Hub", open=True):
                push = _hub(workbench, picker)
            with gr.Accordion("The code", open=True):
                script = _code(workbench, picker, opened)
    return [onnx, embeddings, page, push, script]


def _zips(workbench: Workbench, picker: gr.Radio) -> None:
    with gr.Row():
        for kind, title in (("adapter", "Adapter zip"), ("merged", "Merged zip")):
            button = gr.Button(title, elem_id=f"take-{kind}")
            download_by_click(button, partial(workbench.archive, kind=kind), [picker], f"taken-{kind}")


def _maker(
    workbench: Workbench,
    picker: gr.Radio,
    opened: list[Any],
    kind: str,
    words: str,
    report: Callable[[dict[str, Any]], str],
    options: dict[str, Any] | None = None,
) -> gr.Button:
    """A button that makes something in the run's folder, what came of it, and its zip; returns the button."""
    gr.HTML(f'<p class="quiet">{words}</p>')
    with gr.Row():
        make = gr.Button("Make", elem_id=f"make-{kind}", variant="primary")
        take = gr.Button("Download zip", elem_id=f"take-{kind}", interactive=False)
    shown = gr.HTML(elem_id=f"made-{kind}")

    def export(run_id: str | None, *values: Any) -> Iterator[str]:
        if not run_id:
            yield PICK_A_RUN
            return
        try:
            for step in workbench.make(kind, run_id, **dict(zip(options or {}, values, strict=True))):
                yield working(step.share, step.what)
            yield report(step.result)
        except PeftCoreError as error:
            yield message(str(error))

    def offer(run_id: str | None) -> Any:
        return gr.update(interactive=workbench.holds(run_id, kind))

    at_once([make.click], {take: gr.update(interactive=False)})
    exporting = make.click(export, [picker, *(options or {}).values()], shown, **PRIVATE)
    for ended in (exporting.then, exporting.failure):
        ended(offer, picker, take, **FOLLOWING)
    drop_answers(picker.change, exporting)
    at_once([picker.change], {shown: ""})
    gr.on(opened, offer, picker, take, **FOLLOWING)
    download_by_click(take, partial(workbench.archive, kind=kind), [picker], f"taken-{kind}")
    return make


def _neighbours(workbench: Workbench, picker: gr.Radio) -> None:
    """A search over the test rows: the neighbours under the base and under the adapted encoder."""
    with gr.Row():
        query = gr.Textbox(label="Search the test rows by meaning", elem_id="neighbours-query", scale=4)
        find = gr.Button("Search", elem_id="neighbours-go", scale=1)
    shown = gr.HTML(elem_id="neighbours")

    def search(run_id: str | None, typed: str) -> str:
        if not run_id:
            return PICK_A_RUN
        try:
            return neighbours_table(workbench.neighbours(typed, run_id))
        except PeftCoreError as error:
            return message(str(error))

    searching = gr.on([find.click, query.submit], search, [picker, query], shown, **FOLLOWING)
    drop_answers(picker.change, searching)
    at_once([picker.change], {shown: ""})


def _hub(workbench: Workbench, picker: gr.Radio) -> gr.Button:
    """What a push needs; returns its button."""
    gr.HTML(f'<p class="quiet">{HUB}</p>')
    kind = gr.Radio(PUSHED, value="adapter", show_label=False, elem_id="push-kind")
    with gr.Row():
        name = gr.Textbox(label="Repository", placeholder="name, or owner/name", elem_id="push-name")
        token = gr.Textbox(label="Hub token with write rights", type="password", elem_id="push-token")
    with gr.Row():
        private = gr.Checkbox(True, label="Private", elem_id="push-private")
        overwrite = gr.Checkbox(False, label="Overwrite what is there", elem_id="push-overwrite")
        go = gr.Button("Push", variant="primary", elem_id="push")
    shown = gr.HTML(elem_id="pushed")

    def push(run_id: str | None, *values: Any) -> Iterator[list[Any]]:
        if not run_id:
            yield [PICK_A_RUN, gr.skip()]
            return
        try:
            for step in workbench.push(run_id, *values):
                yield [working(step.share, step.what), ""]
            yield [pushed(step.result), ""]
        except PeftCoreError as error:
            yield [message(str(error)), gr.skip()]

    go.click(push, [picker, kind, name, token, private, overwrite], [shown, token], **PRIVATE)
    return go


def _code(workbench: Workbench, picker: gr.Radio, opened: list[Any]) -> gr.Button:
    """The script that reproduces the run, and the app's own API with the run's id filled in.

    Returns the button that downloads the script.
    """
    kind = code_kinds("This run, in plain Python", "code-kind")
    code = code_view("code")
    with gr.Row():
        take = gr.Button("Download the script and its rows", elem_id="take-script")

    def write(run_id: str | None, chosen: str, request: gr.Request) -> Any:
        if not run_id:
            return gr.update(value="")
        access = api_access(workbench, request)
        return shown(lambda: workbench.code(run_id, chosen, access), chosen)

    gr.on([*opened, kind.input], write, [picker, kind], code, **FOLLOWING)

    download_by_click(take, partial(workbench.archive, kind="script"), [picker], "taken-script")
    return take
