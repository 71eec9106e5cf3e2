"""One text: three cards of the picked run (base, adapter, merged), and what other runs say of it."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas as pd

from peft_core.errors import PeftCoreError
from peft_core.pictures.cards import prediction_card
from peft_core.pictures.inference import runs_table
from peft_core.pictures.pieces import message
from peft_core.problems import REGRESSION
from peft_core.ui.events import FOLLOWING, at_once, drop_answers
from peft_core.workbench import Workbench

OTHERS = "Any finished runs; those of one base model share its weights."
DEFAULT_EXAMPLES = [
    ["A gorgeous, witty, seductive movie."],
    ["The plot is a mess and the jokes fall flat."],
    ["It is not without charm, but two hours is a long time to wait for it."],
]


def build_texts(workbench: Workbench, picker: gr.Radio, standing: gr.State) -> None:
    """Text (or a pair) and examples on top, the cards below, a thin strip and other runs under them."""
    with gr.Row():
        with gr.Column(scale=6):
            text, second = _textboxes(workbench.limits.max_characters if workbench.limits else None)
        go = gr.Button("Predict", variant="primary", elem_id="classify", scale=1, min_width=120)
    examples = gr.Dataset(
        components=[text], samples=DEFAULT_EXAMPLES, type="index", label="Examples", elem_id="examples"
    )
    with gr.Row(elem_classes="predictions"):
        cards = [gr.HTML(card, elem_id=f"card-{i}") for i, card in enumerate(_cards({}))]
    strip = gr.HTML(elem_id="difference")
    others = gr.Dropdown(
        [], multiselect=True, label="Ask other runs too", elem_id="others", info=OTHERS, filterable=True
    )
    theirs = gr.HTML(elem_id="theirs")

    def classify(run_id: str | None, typed: str, typed_second: str, more: list[str]) -> list[str]:
        if not run_id:
            return [*_cards({}), message("Pick a finished run at the side, or train one first."), ""]
        result = workbench.result_of(run_id)
        pair = typed_second if result.get("text_pair") else None
        try:
            answer = workbench.compare(typed, run_id, pair)
            found = workbench.compare_runs(typed, more, pair) if more else []
        except PeftCoreError as error:
            return [*_cards({}), message(str(error)), ""]
        return [*_cards(answer, result.get("train_label_range", ())), _strip(answer), runs_table(found)]

    def describe_run(run_id: str | None) -> list[Any]:
        pairs = bool(workbench.result_of(run_id).get("text_pair"))
        samples = [[" · ".join(sample)] for sample in _examples(workbench, run_id)]
        finished = [run.run_id for run in workbench.list_runs() if run.has_adapter and run.run_id != run_id]
        return [
            gr.update(visible=pairs),
            gr.update(samples=samples),
            gr.update(choices=finished),
        ]

    def example(run_id: str | None, index: int) -> list[str]:
        chosen = _examples(workbench, run_id)[index]
        return [chosen[0], chosen[1] if len(chosen) > 1 else ""]

    inputs, outputs = [picker, text, second, others], [*cards, strip, theirs]
    typed = gr.on([go.click, text.submit, second.submit], classify, inputs, outputs, **FOLLOWING)
    filled_in = examples.click(example, [picker, examples], [text, second], **FOLLOWING)
    chosen = filled_in.then(classify, inputs, outputs, **FOLLOWING)
    drop_answers(picker.change, typed, filled_in, chosen)
    empty = dict(zip(outputs, [*_cards({}), "", ""], strict=True))
    at_once([picker.change], {**empty, second: "", others: []})
    standing.change(describe_run, picker, [second, examples, others], **FOLLOWING)


def _textboxes(most: int | None) -> tuple[gr.Textbox, gr.Textbox]:
    """The text, and the second text of a pair; both take at most so many characters."""
    bounds = {"max_lines": 8, "max_length": most}
    text = gr.Textbox(label="Text", lines=3, placeholder="Type a sentence", elem_id="text", **bounds)
    second = gr.Textbox(label="Second text", lines=2, elem_id="text-pair", visible=False, **bounds)
    return text, second


def _cards(answer: dict[str, Any], limits: Sequence[float] = ()) -> list[str]:
    waiting = "Type a text and press Predict."
    merged = "Not merged yet: press Merge in the Train tab." if "adapter" in answer else waiting
    return [
        prediction_card("Base", "before training", answer.get("base"), waiting, limits),
        prediction_card("Adapter", "after training", answer.get("adapter"), waiting, limits),
        prediction_card("Merged", "one model", answer.get("merged"), merged, limits),
    ]


def _strip(answer: dict[str, Any]) -> str:
    if "max_logit_diff" not in answer:
        return ""
    what = "difference" if "value" in answer["adapter"] else "logit difference"
    return (
        f'<p class="quiet" data-testid="difference">Largest {what} between adapter and merged: '
        f"{answer['max_logit_diff']:.1e}</p>"
    )


def _examples(workbench: Workbench, run_id: str | None) -> list[list[str]]:
    """Texts (or pairs) of the run's own test rows: one it got right for each label, and two it got wrong."""
    try:
        rows = pd.read_parquet(workbench.find(run_id).evaluation) if run_id else None
    except (PeftCoreError, OSError, ValueError):
        rows = None
    if rows is None or not {"text", "label", "predicted"} <= set(rows.columns):
        return DEFAULT_EXAMPLES
    rows = rows[rows["text"].str.len() < 300]
    if workbench.result_of(run_id).get("problem_type") == REGRESSION:
        right, wrong = _near_and_far(rows)
    else:
        rows = rows.assign(label=rows["label"].map(_plain), predicted=rows["predicted"].map(_plain))
        right = rows[rows["label"] == rows["predicted"]].drop_duplicates("label")
        wrong = rows[rows["label"] != rows["predicted"]]
    names = [name for name in ("text", "text_pair") if name in rows]
    return [*right[names].head(5).to_numpy().tolist(), *wrong[names].head(2).to_numpy().tolist()] or (
        DEFAULT_EXAMPLES
    )


def _near_and_far(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of the half predicted best five rows over the whole range of truth; the rows predicted worst first."""
    order = (rows["label"] - rows["predicted"]).abs().sort_values().index
    near = rows.loc[order[: max(1, len(order) // 2)]].sort_values("label")
    places = sorted({round(i * (len(near) - 1) / 4) for i in range(5)})
    return near.iloc[places], rows.loc[order[::-1]]


def _plain(label: Any) -> Any:
    """A label that can be compared: an index, or a tuple of 0 and 1."""
    return tuple(int(held) for held in label) if hasattr(label, "__len__") else int(label)
