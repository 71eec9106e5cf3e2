"""The Inference tab: predictions, calibration, explanations and exports of the picked run, each in a tab."""

import html
from typing import Any

import gradio as gr

from peft_core.service.inference import or_none
from peft_core.service.workbench import Workbench
from peft_core.ui.events import set_values_then
from peft_core.ui.inference.calibration_tab import build_calibration_tab
from peft_core.ui.inference.explain_tab import build_explain_tab
from peft_core.ui.inference.export_tab import build_export_tab
from peft_core.ui.inference.file_tab import build_file_tab
from peft_core.ui.inference.text_tab import build_text_tab
from peft_core.views.components import message

NO_RUN = message("No run is picked: choose one at the side, or press Train first.", "note")
READ_ONLY = (
    "This run is not yours: you can read it, try its model on a text and download its exports. Buttons "
    "that write to it are disabled."
)


def build_inference(workbench: Workbench, picker: gr.Radio, run_version: gr.State) -> None:
    """Build the picked run on top and its tabs below; `run_version` changes when that run does.

    Buttons that write into a run are disabled for visitors who may only read it.
    """
    picked = gr.HTML(NO_RUN, elem_id="picked")
    with gr.Tabs(elem_id="questions"):
        with gr.Tab("Text", id="text"):
            build_text_tab(workbench, picker, run_version)
        with gr.Tab("File", id="file"):
            predict_file = build_file_tab(workbench, picker, run_version)
        with gr.Tab("Calibration", id="calibration") as calibration:
            save_rule = build_calibration_tab(workbench, picker, run_version, calibration)
        with gr.Tab("Explain", id="explain") as explain:
            build_explain_tab(workbench, picker, run_version, explain)
        with gr.Tab("Export", id="export") as export:
            export_buttons = build_export_tab(workbench, picker, run_version, export)
    writing_buttons = [predict_file, save_rule, *export_buttons]

    def show_picked(run_id: str | None) -> dict[Any, Any]:
        owns = or_none(lambda: workbench.access.owns(workbench.find(run_id))) if run_id else None
        is_read_only = owns is False  # None for a run that no longer exists
        line = f'<p class="quiet">Run <b>{html.escape(run_id)}</b></p>' if run_id else NO_RUN
        markup = line + message(READ_ONLY, "note") if is_read_only else line
        updates = {button: gr.update(interactive=not is_read_only) for button in writing_buttons}
        return {picked: markup, **updates}

    set_values_then([picker.change], show_picked, picker, [picked, *writing_buttons])
