"""Explanations of predictions: the attribution of a text's words, and the test rows to search."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from peft_core.errors import PeftCoreError, shorten
from peft_core.service.workbench import Workbench
from peft_core.ui.events import FOLLOWING, PICK_A_RUN, cancel_pending, set_values, show_errors
from peft_core.views.attribution import attribution_view
from peft_core.views.components import message, task_progress

KINDS = [("All rows", "all"), ("Hardest mistakes", "hardest"), ("Suspected wrong labels", "suspected")]
TITLES = {"base": "Base", "adapter": "Adapter", "merged": "Merged"}
MAX_CHARACTERS = 500  # characters of a text in the table
COLUMNS = {"Row": "row", "Text": "text", "True": "true", "Predicted": "predicted", "Confidence": "confidence"}
ROWS = 50  # shown at a time


@dataclass(frozen=True)
class Question:
    """The text to explain, and the output with its attribution."""

    text: gr.Textbox
    second: gr.Textbox
    label: gr.Dropdown
    go: gr.Button
    output: gr.HTML


@dataclass(frozen=True)
class RowsPanel:
    """The run's test rows and their filters."""

    kind: gr.Radio
    filtering: gr.Row
    query: gr.Textbox
    true: gr.Dropdown
    predicted: gr.Dropdown
    count: gr.HTML
    table: gr.Dataframe

    @property
    def filters(self) -> list[Any]:
        return [self.kind, self.query, self.true, self.predicted]


def build_explain_tab(workbench: Workbench, picker: gr.Radio, run_version: gr.State, tab: gr.Tab) -> None:
    """Build a text and its attribution on the left, test rows on the right; a click on a row explains it."""
    with gr.Row():
        with gr.Column(scale=5):
            question = _build_question()
        with gr.Column(scale=6):
            rows = _build_rows()
    explain, inputs, explaining = _wire_question(workbench, picker, question)
    search = _wire_rows(workbench, picker, tab, rows)

    def describe_run(run_id: str | None, *filters: Any) -> list[Any]:
        metrics = workbench.result_of(run_id)
        names = [(name, name) for name in metrics.get("labels", [])]
        chosen, true, predicted = (
            gr.update(choices=[(first, ""), *names], visible=bool(names))
            for first in ("the predicted label", "any", "any")
        )
        pair = gr.update(visible=bool(metrics.get("text_pair")))
        return [pair, chosen, true, predicted, *search(run_id, *filters)]

    def fill_in(run_id: str, event: gr.SelectData) -> list[Any]:
        row = workbench.row(run_id, int(event.row_value[0]))
        return [row["text"], row["text_pair"] or ""]

    texts = [question.text, question.second]
    cleared = [*texts, question.label, question.output, rows.query, rows.true, rows.predicted, rows.count]
    reset = {rows.kind: "all", rows.filtering: gr.update(visible=True)}
    set_values([picker.change], {**dict.fromkeys(cleared, ""), **reset})
    described = [question.second, question.label, rows.true, rows.predicted, rows.count, rows.table]
    run_version.change(describe_run, [picker, *rows.filters], described, **FOLLOWING)
    filled_in = rows.table.select(show_errors(fill_in), picker, texts, **FOLLOWING)
    chosen = filled_in.success(explain, inputs, question.output, **FOLLOWING)
    cancel_pending(picker.change, explaining, filled_in, chosen)


def _build_question() -> Question:
    """Build the layout."""
    text = gr.Textbox(label="Text", lines=2, max_lines=6, elem_id="why-text")
    second = gr.Textbox(label="Second text", lines=2, elem_id="why-pair", visible=False)
    with gr.Row():
        label = gr.Dropdown(
            [("the predicted label", "")], value="", label="Label to explain", elem_id="why-label"
        )
        go = gr.Button("Explain", variant="primary", elem_id="explain")
    return Question(text, second, label, go, gr.HTML(elem_id="explained"))


def _build_rows() -> RowsPanel:
    """Build the layout."""
    kind = gr.Radio(KINDS, value="all", label="Test rows", elem_id="rows-kind")
    with gr.Row() as filtering:
        query = gr.Textbox(label="Search", elem_id="rows-query", placeholder="words in the text")
        true = gr.Dropdown([("any", "")], value="", label="True", elem_id="rows-true")
        predicted = gr.Dropdown([("any", "")], value="", label="Predicted", elem_id="rows-predicted")
    count = gr.HTML(elem_id="rows-count")
    table = gr.Dataframe(
        headers=list(COLUMNS),
        value=[],
        interactive=False,
        wrap=True,
        max_height=520,
        show_label=False,
        elem_id="rows",
        column_widths=["48px", "240px", "88px", "92px", "104px"],
    )
    return RowsPanel(kind, filtering, query, true, predicted, count, table)


def _wire_question(
    workbench: Workbench, picker: gr.Radio, question: Question
) -> tuple[Callable[..., Iterator[str]], list[Any], Dependency]:
    """Wire the button and Enter; return the handler, its inputs and its dependency."""

    def explain(run_id: str | None, typed: str, pair: str, chosen: str) -> Iterator[str]:
        if not run_id:
            yield PICK_A_RUN
            return
        attributions: dict[str, Any] = {}
        try:
            for report in workbench.explain(typed, run_id, chosen or None, pair or None):
                attributions = report.result
                yield task_progress(report.share, report.description)
            yield _explanation(typed, pair, attributions)
        except PeftCoreError as error:
            yield message(str(error))

    inputs = [picker, question.text, question.second, question.label]
    triggers = [question.go.click, question.text.submit]
    return explain, inputs, gr.on(triggers, explain, inputs, question.output, **FOLLOWING)


def _wire_rows(
    workbench: Workbench, picker: gr.Radio, tab: gr.Tab, rows: RowsPanel
) -> Callable[..., list[Any]]:
    """Wire the rows to their filters; return the handler."""

    def search(run_id: str | None, *chosen: Any) -> list[Any]:
        if not run_id:
            return ["", []]
        try:
            matches = workbench.review(run_id, *chosen, max_rows=ROWS)
        except PeftCoreError as error:
            return [message(str(error)), []]
        table = [[_cell(row, name) for name in COLUMNS.values()] for row in matches["rows"]]
        return [_count_line(matches), table]

    triggers = [*(component.input for component in rows.filters), tab.select]
    gr.on(triggers, search, [picker, *rows.filters], [rows.count, rows.table], **FOLLOWING)
    rows.kind.input(
        lambda chosen: gr.update(visible=chosen != "suspected"), rows.kind, rows.filtering, **FOLLOWING
    )
    return search


def _explanation(text: str, pair: str, attributions: dict[str, dict[str, Any]]) -> str:
    """Return HTML with the attribution of each variant, and the errors of the variants without one."""
    by_title = {TITLES[variant]: attribution for variant, attribution in attributions.items()}
    drawn = {title: attribution for title, attribution in by_title.items() if "error" not in attribution}
    errors = {title: answer["error"] for title, answer in by_title.items() if "error" in answer}
    picture = attribution_view(text, pair or None, drawn) if drawn else ""
    return picture + "".join(message(f"{title}: {error}", "note") for title, error in errors.items())


def _count_line(matches: dict[str, Any]) -> str:
    total, listed = matches["total"], len(matches["rows"])
    limited = f", the first {listed} are shown" if total > listed else ""
    return (
        f'<p class="quiet" data-testid="rows-count">{total:,} rows{limited}. Click a row to explain it.</p>'
    )


def _cell(row: dict[str, Any], name: str) -> Any:
    if name == "text":  # shortened, since a click on a row makes the page send the whole column
        return " · ".join(shorten(text, MAX_CHARACTERS) for text in (row["text"], row["text_pair"]) if text)
    if name == "confidence":
        return f"{row['loss']:.4g}" if row["confidence"] is None else f"{row['confidence']:.3f}"
    return row[name]
