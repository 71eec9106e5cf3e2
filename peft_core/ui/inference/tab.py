"""The Inference tab: predictions, calibration, explanations and exports of the picked run, each in a tab."""

import html
from typing import Any

import gradio as gr

from peft_core.inference_service import or_none
from peft_core.pictures.pieces import message
from peft_core.ui.events import set_values_then
from peft_core.ui.inference.files import build_files
from peft_core.ui.inference.taking import build_taking
from peft_core.ui.inference.texts import build_texts
from peft_core.ui.inference.trust import build_trust
from peft_core.ui.inference.why import build_why
from peft_core.workbench import Workbench

NO_RUN = message("No run is picked: choose one at the side, or press Train first.", "note")
READ_ONLY = (
    "This run is not yours: you can read it, try its model on a text and download what was made of it. "
    "Buttons that write into it are off."
)


def build_inference(workbench: Workbench, picker: gr.Radio, run_version: gr.State) -> None:
    """Build the picked run on top and its tabs below; `run_version` changes when that run does.

    Buttons that write into a run are disabled for visitors who may only read it.
    """
    picked = gr.HTML(NO_RUN, elem_id="picked")
    with gr.Tabs(elem_id="questions"):
        with gr.Tab("Text", id="text"):
            build_texts(workbench, picker, run_version)
        with gr.Tab("File", id="file"):
            predict_file = build_files(workbench, picker, run_version)
        with gr.Tab("Calibration", id="trust") as trust:
            save_rule = build_trust(workbench, picker, run_version, trust)
        with gr.Tab("Explain", id="why") as why:
            build_why(workbench, picker, run_version, why)
        with gr.Tab("Export", id="take") as take:
            export_buttons = build_taking(workbench, picker, run_version, take)
    writing_buttons = [predict_file, save_rule, *export_buttons]

    def show_picked(run_id: str | None) -> dict[Any, Any]:
        owns = or_none(lambda: workbench.access.owns(workbench.find(run_id))) if run_id else None
        is_read_only = owns is False  # None for a run that no longer exists
        line = f'<p class="quiet">Run <b>{html.escape(run_id)}</b></p>' if run_id else NO_RUN
        markup = line + message(READ_ONLY, "note") if is_read_only else line
        updates = {button: gr.update(interactive=not is_read_only) for button in writing_buttons}
        return {picked: markup, **updates}

    set_values_then([picker.change], show_picked, picker, [picked, *writing_buttons])
