"""Prediction of one text by the picked run (base, adapter, merged) and by other runs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
import pandas as pd

from peft_core.errors import PeftCoreError
from peft_core.problem_types import REGRESSION
from peft_core.service.workbench import Workbench
from peft_core.ui.events import FOLLOWING, cancel_pending, set_values
from peft_core.views.cards import prediction_card
from peft_core.views.components import message
from peft_core.views.inference import runs_table

OTHER_RUNS_INFO = "Any finished runs; runs of the same base model share its weights."
DEFAULT_EXAMPLES = [
    ["A gorgeous, witty, seductive movie."],
    ["The plot is a mess and the jokes fall flat."],
    ["It is not without charm, but two hours is a long time to wait for it."],
]


def build_text_tab(workbench: Workbench, picker: gr.Radio, run_version: gr.State) -> None:
    """Build the text (or a pair) and examples on top, the predictions below, and other runs under them."""
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
    other_runs = gr.Dropdown(
        [],
        multiselect=True,
        label="Also predict with other runs",
        elem_id="others",
        info=OTHER_RUNS_INFO,
        filterable=True,
    )
    other_predictions = gr.HTML(elem_id="theirs")

    def classify(run_id: str | None, typed: str, typed_second: str, other_ids: list[str]) -> list[str]:
        if not run_id:
            return [*_cards({}), message("Pick a finished run at the side, or train one first."), ""]
        metrics = workbench.result_of(run_id)
        pair = typed_second if metrics.get("text_pair") else None
        try:
            predictions = workbench.compare(typed, run_id, pair)
            comparison = workbench.compare_runs(typed, other_ids, pair) if other_ids else []
        except PeftCoreError as error:
            return [*_cards({}), message(str(error)), ""]
        label_range = metrics.get("train_label_range", ())
        return [*_cards(predictions, label_range), _difference(predictions), runs_table(comparison)]

    def describe_run(run_id: str | None) -> list[Any]:
        pairs = bool(workbench.result_of(run_id).get("text_pair"))
        samples = [[" · ".join(sample)] for sample in _examples(workbench, run_id)]
        finished = [run.run_id for run in workbench.list_runs() if run.has_adapter and run.run_id != run_id]
        return [
            gr.update(visible=pairs),
            gr.update(samples=samples),
            gr.update(choices=finished),
        ]

    inputs, outputs = [picker, text, second, other_runs], [*cards, strip, other_predictions]
    typed = gr.on([go.click, text.submit, second.submit], classify, inputs, outputs, **FOLLOWING)
    fill_in = partial(example_texts, workbench)
    filled_in = examples.click(fill_in, [picker, examples], [text, second], **FOLLOWING)
    chosen = filled_in.then(classify, inputs, outputs, **FOLLOWING)
    cancel_pending(picker.change, typed, filled_in, chosen)
    empty = dict(zip(outputs, [*_cards({}), "", ""], strict=True))
    set_values([picker.change], {**empty, second: "", other_runs: []})
    run_version.change(describe_run, picker, [second, examples, other_runs], **FOLLOWING)


def example_texts(workbench: Workbench, run_id: str | None, index: object) -> list[Any]:
    """Return the text and the second text of an example; for an invalid index both text boxes stay.

    The page sends a valid index, an API client may send anything.
    """
    examples = _examples(workbench, run_id)
    if not isinstance(index, int) or not 0 <= index < len(examples):
        return [gr.skip(), gr.skip()]
    example = examples[index]
    return [example[0], example[1] if len(example) > 1 else ""]


def _textboxes(max_length: int | None) -> tuple[gr.Textbox, gr.Textbox]:
    """Return the text, and the second text of a pair; each takes at most `max_length` characters."""
    textbox = partial(gr.Textbox, max_lines=8, max_length=max_length)
    text = textbox(label="Text", lines=3, placeholder="Type a sentence", elem_id="text")
    second = textbox(label="Second text", lines=2, elem_id="text-pair", visible=False)
    return text, second


def _cards(predictions: dict[str, Any], label_range: Sequence[float] = ()) -> list[str]:
    waiting = "Type a text and press Predict."
    merged = "Not merged yet: press Merge in the Train tab." if "adapter" in predictions else waiting
    return [
        prediction_card("Base", "before training", predictions.get("base"), waiting, label_range),
        prediction_card("Adapter", "after training", predictions.get("adapter"), waiting, label_range),
        prediction_card("Merged", "one model", predictions.get("merged"), merged, label_range),
    ]


def _difference(predictions: dict[str, Any]) -> str:
    """Return HTML with the largest difference between adapter and merged; "" for an unmerged run."""
    if "max_logit_diff" not in predictions:
        return ""
    quantity = "difference" if "value" in predictions["adapter"] else "logit difference"
    return (
        f'<p class="quiet" data-testid="difference">Largest {quantity} between adapter and merged: '
        f"{predictions['max_logit_diff']:.1e}</p>"
    )


def _examples(workbench: Workbench, run_id: str | None) -> list[list[str]]:
    """Return texts (or pairs) of the run's test rows: up to five predicted well, and two predicted badly."""
    rows = _test_rows(workbench, run_id)
    if rows is None:
        return DEFAULT_EXAMPLES
    if workbench.result_of(run_id).get("problem_type") == REGRESSION:
        right, wrong = _regression_examples(rows)
    else:
        right, wrong = _label_examples(rows)
    names = [name for name in ("text", "text_pair") if name in rows]
    texts = [*right[names].head(5).to_numpy().tolist(), *wrong[names].head(2).to_numpy().tolist()]
    return texts or DEFAULT_EXAMPLES


def _test_rows(workbench: Workbench, run_id: str | None) -> pd.DataFrame | None:
    """Return the evaluated test rows with texts under 300 characters; None if there are none to read."""
    try:
        rows = pd.read_parquet(workbench.find(run_id).evaluation) if run_id else None
    except (PeftCoreError, OSError, ValueError):
        return None
    if rows is None or not {"text", "label", "predicted"} <= set(rows.columns):
        return None
    return rows.loc[rows["text"].str.len() < 300]


def _label_examples(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one correctly predicted row per label, and all wrongly predicted rows."""
    labels, predicted = rows["label"].map(_comparable), rows["predicted"].map(_comparable)
    rows = rows.assign(label=labels, predicted=predicted)
    right: pd.DataFrame = rows.loc[rows["label"] == rows["predicted"]]
    return right.drop_duplicates("label"), rows.loc[rows["label"] != rows["predicted"]]


def _regression_examples(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return five rows of the better predicted half, over the range of labels, and all rows, worst first."""
    error = (rows["label"] - rows["predicted"]).abs()
    order = rows.assign(error=error).sort_values("error").index
    near = rows.loc[order[: max(1, len(order) // 2)]].sort_values("label")
    positions = sorted({round(i * (len(near) - 1) / 4) for i in range(5)})
    return near.iloc[positions], rows.loc[order[::-1]]


def _comparable(label: Any) -> Any:
    """Return a label as an int, or a multi-label vector as a tuple of 0 and 1."""
    return tuple(int(flag) for flag in label) if hasattr(label, "__len__") else int(label)
