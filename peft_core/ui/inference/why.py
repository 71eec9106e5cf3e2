"""Why a model answers as it does: a text's words weighed, and the test rows to look at and search."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from peft_core.errors import PeftCoreError, shorten
from peft_core.pictures.explained import explained
from peft_core.pictures.pieces import message, working
from peft_core.ui.events import FOLLOWING, PICK_A_RUN, at_once, drop_answers, sentence
from peft_core.workbench import Workbench

KINDS = [("All rows", "all"), ("Hardest mistakes", "hardest"), ("Suspected wrong labels", "suspected")]
TITLES = {"base": "Base", "adapter": "Adapter", "merged": "Merged"}
MOST_OF_TEXT = 500  # characters of a text in the table
COLUMNS = {"Row": "row", "Text": "text", "True": "true", "Predicted": "predicted", "Confidence": "confidence"}
ROWS = 50  # shown at a time


@dataclass(frozen=True)
class Question:
    """The text to explain, and where its words are drawn."""

    text: gr.Textbox
    second: gr.Textbox
    label: gr.Dropdown
    go: gr.Button
    words: gr.HTML


@dataclass(frozen=True)
class RowsPanel:
    """The run's test rows and what is asked of them."""

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


def build_why(workbench: Workbench, picker: gr.Radio, standing: gr.State, tab: gr.Tab) -> None:
    """A text and its words on the left, the run's test rows on the right; a click on a row explains it."""
    with gr.Row():
        with gr.Column(scale=5):
            question = _question()
        with gr.Column(scale=6):
            rows = _test_rows()
    explain, asked, explaining = _wire_question(workbench, picker, question)
    search = _wire_rows(workbench, picker, tab, rows)

    def describe_run(run_id: str | None, *filters: Any) -> list[Any]:
        result = workbench.result_of(run_id)
        names = [(name, name) for name in result.get("labels", [])]
        chosen, true, predicted = (
            gr.update(choices=[(first, ""), *names], visible=bool(names))
            for first in ("the predicted one", "any", "any")
        )
        pair = gr.update(visible=bool(result.get("text_pair")))
        return [pair, chosen, true, predicted, *search(run_id, *filters)]

    def take(run_id: str | None, event: gr.SelectData) -> list[Any]:
        row = workbench.row(run_id, int(event.row_value[0]))
        return [row["text"], row["text_pair"] or ""]

    texts = [question.text, question.second]
    places = [*texts, question.label, question.words, rows.query, rows.true, rows.predicted, rows.count]
    shown = {rows.kind: "all", rows.filtering: gr.update(visible=True)}
    at_once([picker.change], {**dict.fromkeys(places, ""), **shown})
    described = [question.second, question.label, rows.true, rows.predicted, rows.count, rows.table]
    standing.change(describe_run, [picker, *rows.filters], described, **FOLLOWING)
    filled_in = rows.table.select(sentence(take), picker, texts, **FOLLOWING)
    chosen = filled_in.success(explain, asked, question.words, **FOLLOWING)
    drop_answers(picker.change, explaining, filled_in, chosen)


def _question() -> Question:
    """Layout alone."""
    text = gr.Textbox(label="Text", lines=2, max_lines=6, elem_id="why-text")
    second = gr.Textbox(label="Second text", lines=2, elem_id="why-pair", visible=False)
    with gr.Row():
        label = gr.Dropdown(
            [("the predicted one", "")], value="", label="Label to explain", elem_id="why-label"
        )
        go = gr.Button("Explain", variant="primary", elem_id="explain")
    return Question(text, second, label, go, gr.HTML(elem_id="explained"))


def _test_rows() -> RowsPanel:
    """Layout alone."""
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
) -> tuple[Callable[..., Iterator[str]], list[Any], gr.events.Dependency]:
    """Explain by the button or Enter; what comes back is the handler, its inputs and its dependency."""

    def explain(run_id: str | None, typed: str, pair: str, chosen: str) -> Iterator[str]:
        if not run_id:
            yield PICK_A_RUN
            return
        try:
            for step in workbench.explain(typed, run_id, chosen or None, pair or None):
                yield working(step.share, step.what)
            yield _explained(typed, pair, step.result)
        except PeftCoreError as error:
            yield message(str(error))

    asked = [picker, question.text, question.second, question.label]
    triggers = [question.go.click, question.text.submit]
    return explain, asked, gr.on(triggers, explain, asked, question.words, **FOLLOWING)


def _wire_rows(
    workbench: Workbench, picker: gr.Radio, tab: gr.Tab, rows: RowsPanel
) -> Callable[..., list[Any]]:
    """The rows follow their filters; what comes back is the handler."""

    def search(run_id: str | None, *chosen: Any) -> list[Any]:
        if not run_id:
            return ["", []]
        try:
            found = workbench.review(run_id, *chosen, most=ROWS)
        except PeftCoreError as error:
            return [message(str(error)), []]
        return [_count(found), [[_cell(row, name) for name in COLUMNS.values()] for row in found["rows"]]]

    changed = [*(one.input for one in rows.filters), tab.select]
    gr.on(changed, search, [picker, *rows.filters], [rows.count, rows.table], **FOLLOWING)
    rows.kind.input(
        lambda chosen: gr.update(visible=chosen != "suspected"), rows.kind, rows.filtering, **FOLLOWING
    )
    return search


def _explained(text: str, pair: str, found: dict[str, dict[str, Any]]) -> str:
    """Each model's words, and why one of them has none."""
    drawn = {TITLES[name]: answer for name, answer in found.items() if "error" not in answer}
    refused = {TITLES[name]: answer["error"] for name, answer in found.items() if "error" in answer}
    picture = explained(text, pair or None, drawn) if drawn else ""
    return picture + "".join(message(f"{title}: {why}", "note") for title, why in refused.items())


def _count(found: dict[str, Any]) -> str:
    shown = f", the first {len(found['rows'])} are shown" if found["total"] > len(found["rows"]) else ""
    return (
        f'<p class="quiet" data-testid="rows-count">{found["total"]:,} rows{shown}. A click explains one.</p>'
    )


def _cell(row: dict[str, Any], name: str) -> Any:
    if name == "text":  # cut: with a click on a row the page sends the whole column
        return " · ".join(shorten(text, MOST_OF_TEXT) for text in (row["text"], row["text_pair"]) if text)
    if name == "confidence":
        return f"{row['loss']:.4g}" if row["confidence"] is None else f"{row['confidence']:.3f}"
    return row[name]
