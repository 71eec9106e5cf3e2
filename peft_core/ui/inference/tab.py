"""The Inference tab: what is asked of the picked run, each kind of question in a tab of its own."""

import html
from typing import Any

import gradio as gr

from peft_core.inference_service import or_none
from peft_core.pictures.pieces import message
from peft_core.ui.events import then_at_once
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


def build_inference(workbench: Workbench, picker: gr.Radio, standing: gr.State) -> None:
    """The picked run on top, the kinds of question below; `standing` changes when that run does.

    Buttons that write into a run are off for whoever may only read it.
    """
    picked = gr.HTML(NO_RUN, elem_id="picked")
    with gr.Tabs(elem_id="questions"):
        with gr.Tab("A text", id="text"):
            build_texts(workbench, picker, standing)
        with gr.Tab("A file", id="file"):
            predict_file = build_files(workbench, picker, standing)
        with gr.Tab("Can I trust it?", id="trust") as trust:
            save_rule = build_trust(workbench, picker, standing, trust)
        with gr.Tab("Why?", id="why") as why:
            build_why(workbench, picker, standing, why)
        with gr.Tab("Take away", id="take") as take:
            makers = build_taking(workbench, picker, standing, take)
    writing = [predict_file, save_rule, *makers]

    def show_picked(run_id: str | None) -> dict[Any, Any]:
        owns = or_none(lambda: workbench.access.owns(workbench.find(run_id))) if run_id else None
        is_others = owns is False  # of a run that is gone nothing is known
        line = f'<p class="quiet">Run <b>{html.escape(run_id)}</b></p>' if run_id else NO_RUN
        shown = line + message(READ_ONLY, "note") if is_others else line
        return {picked: shown} | {button: gr.update(interactive=not is_others) for button in writing}

    then_at_once([picker.change], show_picked, picker, [picked, *writing])
