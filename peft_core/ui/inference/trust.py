"""Whether to trust the answers: a rule chosen on validation rows, judged on test rows, kept with the run."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
import pandas as pd

from peft_core.errors import PeftCoreError
from peft_core.pictures.inference import coverage_chart, reliability_chart, trust_table
from peft_core.pictures.pieces import message
from peft_core.ui.events import FOLLOWING, PICK_A_RUN, PRIVATE, plot, then_at_once
from peft_core.workbench import Workbench

HELP = (
    "A probability is worth its name if, of the answers given with 0.9, nine in ten are right. The "
    "temperature makes it so; thresholds weigh the labels; below the least confidence the model says "
    "nothing. All are chosen on validation rows, saved with the run, and travel with every export."
)


@dataclass(frozen=True)
class RuleForm:
    """The choice of a rule: its values, how it is fitted, and the buttons."""

    temperature: gr.Number
    thresholds: gr.Dataframe
    abstain: gr.Number
    fit_thresholds: gr.Checkbox
    at_least: gr.Number
    fit: gr.Button
    plain: gr.Button
    save: gr.Button
    said: gr.HTML

    @property
    def values(self) -> list[Any]:
        """The components that make up a rule, in the order that `_rule` takes."""
        return [self.temperature, self.thresholds, self.abstain]


def build_trust(workbench: Workbench, picker: gr.Radio, standing: gr.State, tab: gr.Tab) -> gr.Button:
    """The choice on the left, what it brings on the right; returns the button that saves it."""
    with gr.Row():
        with gr.Column(scale=4):
            form = _rule_form()
        with gr.Column(scale=6):
            table = gr.HTML(elem_id="trust-table")
            with gr.Row():
                reliability = gr.Plot(label="Reliability", elem_id="reliability", container=False)
                coverage = gr.Plot(label="Coverage", elem_id="coverage", container=False)
    _wire(workbench, picker, [tab.select, standing.change], form, [table, reliability, coverage])
    return form.save


def _rule_form() -> RuleForm:
    """Layout alone."""
    gr.HTML(f'<p class="quiet">{HELP}</p>')
    with gr.Row():
        temperature = gr.Number(1.0, label="Temperature", elem_id="temperature", step=0.01)
        abstain = gr.Number(0.0, label="Least confidence", elem_id="abstain", step=0.01)
    thresholds = gr.Dataframe(
        headers=["label", "threshold"],
        datatype=["str", "number"],
        value=[],
        static_columns=[0],
        label="Thresholds (empty: the likeliest label)",
        elem_id="thresholds",
        max_height=220,
    )
    with gr.Row():
        fit_thresholds = gr.Checkbox(False, label="Fit thresholds (best F1)", elem_id="fit-thresholds")
        at_least = gr.Number(0, label="Right answers, at least % (0: any)", elem_id="at-least")
    with gr.Row():
        fit = gr.Button("Fit", elem_id="fit")
        plain = gr.Button("Plain rule", elem_id="plain-rule")
        save = gr.Button("Save with the run", variant="primary", elem_id="save-rule")
    said = gr.HTML(elem_id="rule-said")
    return RuleForm(temperature, thresholds, abstain, fit_thresholds, at_least, fit, plain, save, said)


def _wire(
    workbench: Workbench, picker: gr.Radio, opened: list[Any], form: RuleForm, shown: list[Any]
) -> None:
    """A rule is judged as it changes; `shown` are its table, or a sentence in its place, and its charts.

    What fills in a rule clears the confirmation in the same answer, and an edit clears it in the browser: no
    answer that comes late can take away the confirmation of what was saved after it.
    """
    loaded = gr.State("")  # the rule that was last read from the run, with the run's id

    def judge(run_id: str | None, *values: Any) -> list[Any]:
        if not run_id:
            return [PICK_A_RUN, None, None]
        try:
            return _drawn(workbench.judge_rule(run_id, _rule(*values)), values[2])
        except PeftCoreError as error:
            return [message(str(error)), None, None]

    def fill(run_id: str | None, rule: dict[str, Any]) -> list[Any]:
        values = _values(rule)
        return [*values, *judge(run_id, *values), ""]

    def explain(error: PeftCoreError) -> list[Any]:
        return [*(gr.skip() for _ in form.values), message(str(error)), gr.skip(), gr.skip(), ""]

    def load(run_id: str | None, last: str) -> list[Any]:
        """The run's own rule, unless it was read before: what a person has typed since is not overwritten."""
        try:
            rule = workbench.rule(run_id) if run_id else {}
            current = _token(workbench, run_id, rule)
        except PeftCoreError as error:
            return [*explain(error), ""]
        if current == last:
            return [gr.skip()] * (len(everything) + 1)
        return [*fill(run_id, rule), current]

    def suggest(run_id: str | None, thresholds: bool, percent_right: float | None) -> list[Any]:
        try:
            rule = workbench.suggest_rule(run_id, thresholds, percent_right) if run_id else {}
        except PeftCoreError as error:
            return explain(error)
        return fill(run_id, rule)

    def plain(run_id: str | None) -> list[Any]:
        try:
            labels = workbench.rule(run_id)["labels"] if run_id else ()
        except PeftCoreError as error:
            return explain(error)
        return fill(run_id, {"labels": labels})

    def save(run_id: str | None, *values: Any) -> list[Any]:
        try:
            workbench.save_rule(run_id, _rule(*values))
            saved = _token(workbench, run_id, workbench.rule(run_id))
        except PeftCoreError as error:
            return [message(str(error)), gr.skip()]
        return [message("Saved: predictions and exports of this run go by it.", "note"), saved]

    everything = [*form.values, *shown, form.said]
    gr.on(opened, load, [picker, loaded], [*everything, loaded], **FOLLOWING)
    form.fit.click(suggest, [picker, form.fit_thresholds, form.at_least], everything, **PRIVATE)
    form.plain.click(plain, picker, everything, **PRIVATE)
    edits = [one.input for one in form.values]
    then_at_once(edits, judge, [picker, *form.values], shown, clear={form.said: ""})
    form.save.click(save, [picker, *form.values], [form.said, loaded], **PRIVATE)


def _token(workbench: Workbench, run_id: str | None, rule: dict[str, Any]) -> str:
    """A text that is another one for another run, for one that has trained on, and for another rule of it."""
    state = workbench.status(run_id) if run_id else {}
    return repr((run_id, state.get("status"), state.get("ended"), sorted(rule.items())))


def _values(rule: dict[str, Any]) -> list[Any]:
    """Temperature, a table of thresholds and the least confidence, as the components take them."""
    thresholds = rule.get("thresholds", {})
    rows = [[label, thresholds.get(label)] for label in rule.get("labels", ())]
    table = pd.DataFrame(rows, columns=["label", "threshold"])
    return [rule.get("temperature", 1.0), table, rule.get("abstain_below", 0.0)]


def _rule(temperature: Any, table: pd.DataFrame, abstain_below: Any) -> dict[str, Any]:
    rows = table[pd.to_numeric(table["threshold"], errors="coerce").notna()] if len(table) else table
    thresholds = {str(label): value for label, value in zip(rows["label"], rows["threshold"], strict=True)}
    return {"temperature": temperature, "thresholds": thresholds, "abstain_below": abstain_below}


def _drawn(report: dict[str, Any], abstain_below: float) -> list[Any]:
    charts = (reliability_chart(report), coverage_chart(report, abstain_below))
    return [trust_table(report), *(plot(chart) for chart in charts)]
