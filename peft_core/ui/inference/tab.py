"""The Inference tab: what is asked of the picked run, each kind of question in a tab of its own."""

import html
from typing import Any

import gradio as gr

from peft_core.pictures.pieces import message
from peft_core.ui.events import then_at_once
from peft_core.ui.inference.files import build_files
from peft_core.ui.inference.taking import build_taking
from peft_core.ui.inference.texts import build_texts
from peft_core.ui.inference.trust import build_trust
from peft_core.ui.inference.why import build_why
from peft_core.workbench import Workbench


def build_inference(workbench: Workbench, picker: gr.Radio, standing: gr.State) -> None:
    """The picked run on top, the kinds of question below; `standing` changes when that run does."""
    picked = gr.HTML(_picked(None), elem_id="picked")
    with gr.Tabs(elem_id="questions"):
        with gr.Tab("A text", id="text"):
            build_texts(workbench, picker, standing)
        with gr.Tab("A file", id="file"):
            build_files(workbench, picker, standing)
        with gr.Tab("Can I trust it?", id="trust") as trust:
            build_trust(workbench, picker, standing, trust)
        with gr.Tab("Why?", id="why") as why:
            build_why(workbench, picker, standing, why)
        with gr.Tab("Take away", id="take") as take:
            build_taking(workbench, picker, standing, take)
    then_at_once([picker.change], _picked, picker, picked)


def _picked(run_id: str | None) -> Any:
    if run_id is None:
        return message("No run is picked: choose one at the side, or press Train first.", "note")
    return f'<p class="quiet">Run <b>{html.escape(run_id)}</b></p>'
