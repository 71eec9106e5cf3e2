"""Calibration: a decision rule, fitted on validation rows, evaluated on test rows, saved with the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import pandas as pd

from peft_core.errors import PeftCoreError
from peft_core.service.workbench import Workbench
from peft_core.ui.events import FOLLOWING, PICK_A_RUN, PRIVATE, Trigger, plot, set_values_then
from peft_core.views.components import message
from peft_core.views.inference import calibration_table, coverage_chart, reliability_chart

HELP = (
    "Probabilities are calibrated if nine in ten of the answers with probability 0.9 are correct. The "
    "temperature calibrates them, and thresholds weight the labels. Below the minimum confidence the model "
    "gives no answer. All are chosen on validation rows, saved with the run, and part of every export."
)


@dataclass(frozen=True)
class RuleForm:
    """The fields of a decision rule, the options of its fit, the buttons, and a status line."""

    temperature: gr.Number
    thresholds: gr.Dataframe
    abstain: gr.Number
    fit_thresholds: gr.Checkbox
    at_least: gr.Number
    fit: gr.Button
    plain: gr.Button
    save: gr.Button
    status: gr.HTML

    @property
    def values(self) -> list[Any]:
        """The components of a rule, in the order of `_rule_of`."""
        return [self.temperature, self.thresholds, self.abstain]


def build_calibration_tab(
    workbench: Workbench, picker: gr.Radio, run_version: gr.State, tab: gr.Tab
) -> gr.Button:
    """Build the rule on the left, its evaluation on the right; return the button that saves the rule."""
    with gr.Row():
        with gr.Column(scale=4):
            form = _rule_form()
        with gr.Column(scale=6):
            table = gr.HTML(elem_id="trust-table")
            with gr.Row():
                reliability = gr.Plot(label="Reliability", elem_id="reliability", container=False)
                coverage = gr.Plot(label="Coverage", elem_id="coverage", container=False)
    triggers: list[Trigger] = [tab.select, run_version.change]
    _wire(workbench, picker, triggers, form, [table, reliability, coverage])
    return form.save


def _rule_form() -> RuleForm:
    """Build the layout."""
    gr.HTML(f'<p class="quiet">{HELP}</p>')
    with gr.Row():
        temperature = gr.Number(1.0, label="Temperature", elem_id="temperature", step=0.01)
        abstain = gr.Number(0.0, label="Minimum confidence", elem_id="abstain", step=0.01)
    thresholds = gr.Dataframe(
        headers=["label", "threshold"],
        datatype=["str", "number"],
        value=[],
        static_columns=[0],
        label="Thresholds (empty: the most probable label)",
        elem_id="thresholds",
        max_height=220,
    )
    with gr.Row():
        fit_thresholds = gr.Checkbox(False, label="Fit thresholds (best F1)", elem_id="fit-thresholds")
        at_least = gr.Number(0, label="Minimum accuracy, % (0: any)", elem_id="at-least")
    with gr.Row():
        fit = gr.Button("Fit", elem_id="fit")
        plain = gr.Button("Default rule", elem_id="plain-rule")
        save = gr.Button("Save with the run", variant="primary", elem_id="save-rule")
    status = gr.HTML(elem_id="rule-said")
    return RuleForm(temperature, thresholds, abstain, fit_thresholds, at_least, fit, plain, save, status)


def _wire(
    workbench: Workbench,
    picker: gr.Radio,
    triggers: list[Trigger],
    form: RuleForm,
    evaluation: list[gr.HTML | gr.Plot],
) -> None:
    """Evaluate a rule as it changes; `evaluation` is a table (or an error in its place) and two charts.

    A handler that fills in a rule clears the confirmation in the same answer, and an edit clears it in the
    browser. So no late answer can remove the confirmation of a rule that was saved after it.
    """
    loaded = gr.State("")  # digest of the rule that was last read from the run
    outputs = [*form.values, *evaluation, form.status]
    evaluate, inputs = partial(_evaluate, workbench), [picker, *form.values]
    gr.on(triggers, partial(_load, workbench), [picker, loaded], [*outputs, loaded], **FOLLOWING)
    fit_options = [picker, form.fit_thresholds, form.at_least]
    form.fit.click(partial(_suggest, workbench), fit_options, outputs, **PRIVATE)
    form.plain.click(partial(_reset, workbench), picker, outputs, **PRIVATE)
    edits = [component.input for component in form.values]
    set_values_then(edits, evaluate, inputs, evaluation, clear={form.status: ""})
    form.save.click(partial(_save, workbench), inputs, [form.status, loaded], **PRIVATE)


def _evaluate(workbench: Workbench, run_id: str | None, *values: Any) -> list[Any]:
    """Return the table and the charts of a rule's evaluation on the test rows."""
    if not run_id:
        return [PICK_A_RUN, None, None]
    try:
        report = workbench.evaluate_decision_rule(run_id, _rule_of(*values))
        charts = (reliability_chart(report), coverage_chart(report, values[2]))
        return [calibration_table(report), *(plot(chart) for chart in charts)]
    except PeftCoreError as error:
        return [message(str(error)), None, None]


def _fill(workbench: Workbench, run_id: str | None, rule: Mapping[str, Any]) -> list[Any]:
    """Return the fields' values of a rule, its evaluation, and an empty status."""
    values = _values_of(rule)
    return [*values, *_evaluate(workbench, run_id, *values), ""]


def _show_error(error: PeftCoreError) -> list[Any]:
    """Return an error in place of the table; the rule and the charts stay."""
    fields = [gr.skip()] * 3
    return [*fields, message(str(error)), gr.skip(), gr.skip(), ""]


def _load(workbench: Workbench, run_id: str | None, last_digest: str) -> list[Any]:
    """Return the run's saved rule, unless it was loaded before: edits since then stay."""
    try:
        rule = workbench.decision_rule(run_id) if run_id else {}
        digest = _digest(workbench, run_id, rule)
    except PeftCoreError as error:
        return [*_show_error(error), ""]
    if digest == last_digest:
        return [gr.skip()] * 8
    return [*_fill(workbench, run_id, rule), digest]


def _suggest(
    workbench: Workbench, run_id: str | None, thresholds: bool, percent_right: float | None
) -> list[Any]:
    """Return the rule that is fitted on the validation rows."""
    try:
        rule = workbench.suggest_decision_rule(run_id, thresholds, percent_right) if run_id else {}
    except PeftCoreError as error:
        return _show_error(error)
    return _fill(workbench, run_id, rule)


def _reset(workbench: Workbench, run_id: str | None) -> list[Any]:
    """Return the default rule: temperature 1, no thresholds, no abstention."""
    try:
        labels = workbench.decision_rule(run_id)["labels"] if run_id else ()
    except PeftCoreError as error:
        return _show_error(error)
    return _fill(workbench, run_id, {"labels": labels})


def _save(workbench: Workbench, run_id: str | None, *values: Any) -> list[Any]:
    """Save the rule with the run; return a confirmation or an error, and the digest of the saved rule."""
    if not run_id:
        return [PICK_A_RUN, gr.skip()]
    try:
        workbench.save_decision_rule(run_id, _rule_of(*values))
        digest = _digest(workbench, run_id, workbench.decision_rule(run_id))
    except PeftCoreError as error:
        return [message(str(error)), gr.skip()]
    return [message("Saved: predictions and exports of this run use this rule.", "note"), digest]


def _digest(workbench: Workbench, run_id: str | None, rule: Mapping[str, Any]) -> str:
    """Return a text that differs between runs, trainings of a run, and rules of a run."""
    state = workbench.status(run_id) if run_id else {}
    return repr((run_id, state.get("status"), state.get("ended"), sorted(rule.items())))


def _values_of(rule: Mapping[str, Any]) -> list[Any]:
    """Return temperature, table of thresholds and minimum confidence, as the components take them."""
    thresholds = rule.get("thresholds", {})
    rows = [[label, thresholds.get(label)] for label in rule.get("labels", ())]
    table = pd.DataFrame(rows, columns=["label", "threshold"])
    return [rule.get("temperature", 1.0), table, rule.get("abstain_below", 0.0)]


def _rule_of(temperature: Any, table: pd.DataFrame, abstain_below: Any) -> dict[str, Any]:
    """Return the rule of the components' values; rows without a number have no threshold."""
    rows = table[pd.notna(pd.to_numeric(table["threshold"], errors="coerce"))] if len(table) else table
    thresholds = {str(label): number for label, number in zip(rows["label"], rows["threshold"], strict=True)}
    return {"temperature": temperature, "thresholds": thresholds, "abstain_below": abstain_below}
