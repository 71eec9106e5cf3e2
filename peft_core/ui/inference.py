"""The Inference tab: one text, three cards: the base model, the adapter, the merged model."""

import html
from typing import Any

import gradio as gr
import pandas as pd

from peft_core.errors import PeftCoreError
from peft_core.pictures import message, prediction_card
from peft_core.ui.events import PRIVATE
from peft_core.workbench import Workbench

DEFAULT_EXAMPLES = [
    ["A gorgeous, witty, seductive movie."],
    ["The plot is a mess and the jokes fall flat."],
    ["It is not without charm, but two hours is a long time to wait for it."],
]


def build_inference(workbench: Workbench, picker: gr.Radio) -> None:
    """Text and examples on top, the cards below, a thin strip under them."""
    picked = gr.HTML(_picked(None), elem_id="picked")
    with gr.Row():
        text = gr.Textbox(
            label="Text",
            lines=3,
            max_lines=8,
            placeholder="Type a sentence to classify",
            elem_id="text",
            scale=6,
            max_length=workbench.limits.max_characters if workbench.limits else None,
        )
        go = gr.Button("Classify", variant="primary", elem_id="classify", scale=1, min_width=120)
    examples = gr.Dataset(
        components=[text], samples=DEFAULT_EXAMPLES, type="index", label="Examples", elem_id="examples"
    )
    with gr.Row(elem_classes="predictions"):
        cards = [gr.HTML(card, elem_id=f"card-{i}") for i, card in enumerate(_cards({}))]
    strip = gr.HTML(elem_id="difference")

    def classify(run_id: str | None, typed: str) -> list[str]:
        if not run_id:
            return [*_cards({}), message("Pick a finished run at the side, or train one first.")]
        try:
            answer = workbench.compare(typed, run_id)
        except PeftCoreError as error:
            return [*_cards({}), message(str(error))]
        return [*_cards(answer), _strip(answer)]

    def look(run_id: str | None) -> list[Any]:
        return [_picked(run_id), gr.update(samples=_examples(workbench, run_id)), *_cards({}), ""]

    def example(run_id: str | None, index: int) -> str:
        return _examples(workbench, run_id)[index][0]

    outputs = [*cards, strip]
    gr.on([go.click, text.submit], classify, [picker, text], outputs, **PRIVATE)
    examples.click(example, [picker, examples], text, **PRIVATE).then(
        classify, [picker, text], outputs, **PRIVATE
    )
    picker.change(look, picker, [picked, examples, *outputs], **PRIVATE)


def _picked(run_id: str | None) -> str:
    if run_id is None:
        return message("No run is picked: choose one at the side, or press Train first.", "note")
    return f'<p class="quiet">Run <b>{html.escape(run_id)}</b></p>'


def _cards(answer: dict[str, Any]) -> list[str]:
    waiting = "Type a text and press Classify."
    merged = "Not merged yet: press Merge in the Train tab." if "adapter" in answer else waiting
    return [
        prediction_card("Base", "before training", answer.get("base"), waiting),
        prediction_card("Adapter", "base + LoRA", answer.get("adapter"), waiting),
        prediction_card("Merged", "one model", answer.get("merged"), merged),
    ]


def _strip(answer: dict[str, Any]) -> str:
    if "max_logit_diff" not in answer:
        return ""
    return (
        '<p class="quiet" data-testid="difference">Largest logit difference between adapter and merged: '
        f"{answer['max_logit_diff']:.1e}</p>"
    )


def _examples(workbench: Workbench, run_id: str | None) -> list[list[str]]:
    """Texts of the run's own evaluation rows: one it got right for each label, and two it got wrong."""
    try:
        rows = pd.read_parquet(workbench.find(run_id).evaluation) if run_id else None
    except (PeftCoreError, OSError, ValueError):
        rows = None
    if rows is None or not {"text", "label", "predicted"} <= set(rows.columns):
        return DEFAULT_EXAMPLES
    rows = rows[rows["text"].str.len() < 300]
    right = rows[rows["label"] == rows["predicted"]].drop_duplicates("label").head(5)
    wrong = rows[rows["label"] != rows["predicted"]].head(2)
    return [[text] for text in [*right["text"], *wrong["text"]]] or DEFAULT_EXAMPLES
