"""The Train tab: the form and its buttons on the left, the picked run on the right."""

import hashlib
from typing import Any

import gradio as gr

from peft_core.errors import ConfigError, ModelError, PeftCoreError, RunError
from peft_core.runs import ENDED, FAILED, KILLED, RUNNING, SCHEDULED
from peft_core.service.workbench import Workbench
from peft_core.ui.code import api_access, code_kinds, code_update, code_view
from peft_core.ui.data_card import wire_data_card
from peft_core.ui.events import FOLLOWING, PRIVATE, set_values, set_values_then, show_errors
from peft_core.ui.fields import Form
from peft_core.ui.form import build_form, settings_of, wire_form
from peft_core.ui.run_panel import RunPanel, build_run_panel, poll, updates, wire_run_panel
from peft_core.ui.sidebar import Sidebar, describe_usage, run_choices
from peft_core.views.components import message

# The run is at the top of the page, however many cards are open.
TO_THE_TOP = """() => {
  if (document.querySelector('#panel .running')) window.scrollTo({ top: 0, behavior: 'smooth' });
}"""
POLL_SECONDS = 1.0  # between polls of the picked run
# On a public demo while the picked run neither waits nor trains: 100 open pages would take a core.
IDLE_POLL_SECONDS = 10.0


def build_train(
    page: gr.Blocks, workbench: Workbench, sidebar: Sidebar, run_version: gr.State, tabs: gr.Tabs
) -> Form:
    """Build and wire the tab; return the form's fields, which other tabs fill in."""
    picker = sidebar.picker
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=4, min_width=320):
            form, recipe, cards = build_form(workbench)
            strip = gr.HTML('<div class="cost skeleton">Counting parameters…</div>', elem_id="cost")
            refusal = gr.HTML(elem_id="refused")
            with gr.Row(elem_classes="go"):
                go = gr.Button("Train", variant="primary", elem_id="train")
                resume = gr.Button("Continue", elem_id="continue", visible=False)
                evaluate = gr.Button("Evaluate", elem_id="evaluate", visible=False)
                train_again = gr.Button("Train as a new run", elem_id="train-again", visible=False)
                stop = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
                show_code = gr.Button("As code", elem_id="show-code", scale=0, min_width=110)
            with gr.Column(visible=False) as codes:
                kind = code_kinds("These settings, in plain Python", "settings-code-kind")
                code = code_view("settings-code")
        with gr.Column(scale=6, min_width=320, elem_classes="happening"):
            panel = build_run_panel()
    refresh_token = gr.Textbox(visible="hidden")  # a change of it redraws all that is shown of the run

    def started(answer: dict[str, Any]) -> Any:
        if answer["waiting_for"]:
            gr.Info(f"{answer['run_id']} waits behind {answer['waiting_for']}.")
        return gr.update(choices=run_choices(workbench), value=answer["run_id"])

    def train(values: dict) -> list[Any]:
        try:
            picked = started(workbench.train(settings_of(form, values)))
        except (ConfigError, ModelError) as error:  # shown in the cost strip
            return [gr.skip(), "", message(str(error))]
        except PeftCoreError as error:
            return [gr.skip(), message(str(error)), gr.skip()]
        return [picked, "", gr.skip()]

    edits = [recipe.input, *[field.input for field in form.values()]]
    # first, before the handler that fills in a recipe's settings
    set_values(edits, {refusal: "", codes: gr.update(visible=False)})
    wire_data_card(cards.data, form, cards.accordions[1], cards.facts, workbench, go)
    wire_form(page, workbench, form, recipe, cards, strip=strip, picture=panel.picture)
    wire_run_panel(panel, workbench, picker, tabs, form, refresh_token)
    buttons = [go, resume, evaluate, train_again, stop]
    _wire_polling(workbench, panel, sidebar, refresh_token, run_version, buttons)
    go.click(train, set(form.values()), [picker, refusal, strip], **PRIVATE).then(fn=None, js=TO_THE_TOP)
    _wire_code(workbench, form, show_code, kind, [code, codes])
    for button, action in ((resume, workbench.resume), (evaluate, workbench.evaluate)):
        continued = button.click(
            show_errors(lambda run_id, action=action: action(run_id) and None), picker, None, **PRIVATE
        )
        continued.success(lambda: "", None, refresh_token, **PRIVATE)  # redraws the run without a delay
    train_again.click(
        show_errors(lambda run_id: started(workbench.train_again(run_id))), picker, picker, **PRIVATE
    )
    stop.click(show_errors(lambda run_id: workbench.stop(run_id) and None), picker, None, **PRIVATE)
    return form


def _wire_polling(
    workbench: Workbench,
    panel: RunPanel,
    sidebar: Sidebar,
    refresh_token: gr.Textbox,
    run_version: gr.State,
    buttons: list[gr.Button],
) -> None:
    """Poll the picked run each second; `buttons` are those of `_button_updates`."""
    picker, last_snapshot, timer = sidebar.picker, gr.State(), gr.Timer(POLL_SECONDS)

    def poll_run(
        run_id: str | None, last_token: str, last_progress: tuple[str, str] | None
    ) -> dict[Any, Any]:
        """Return updates of curves and progress, and a new `refresh_token` if anything else has changed.

        A page polls each second, also during a training, so most answers hold no update. It bypasses the
        queue, which halves the cost of a poll; then only the change of a component, not of a State, triggers
        a listener.
        """
        snapshot = poll(panel, workbench, run_id, last_progress or ("", ""))
        choices = run_choices(workbench, run_id)
        session_expired = last_token and last_progress is None  # then the next poll redraws all
        token = "" if session_expired else _digest(run_id, choices, snapshot.signature)
        return {
            refresh_token: gr.skip() if token == last_token else token,
            last_snapshot: gr.skip() if snapshot.progress == last_progress else snapshot.progress,
            **snapshot.updates,
        }

    def show_run(run_id: str | None) -> dict[Any, Any]:
        """Return the updates that show the picked run as it is on disk."""
        return {
            picker: gr.update(choices=run_choices(workbench, run_id)),
            sidebar.usage: describe_usage(workbench),
            timer: gr.update(value=_poll_seconds(workbench, run_id)),
            run_version: f"{run_id} {_status(workbench, run_id)}" if run_id else "",
            **updates(panel, workbench, run_id),
            **dict(zip(buttons, _button_updates(workbench, run_id), strict=True)),
        }

    inputs = [picker, refresh_token, last_snapshot]
    outputs = [refresh_token, last_snapshot, panel.card, panel.loss, panel.metric]
    timer.tick(poll_run, inputs, outputs, queue=False, **PRIVATE)
    set_values_then([picker.change], poll_run, inputs, outputs)
    redrawn = [picker, sidebar.usage, timer, run_version, *panel.outputs, *buttons]
    refresh_token.change(show_run, picker, redrawn, **FOLLOWING)


def _poll_seconds(workbench: Workbench, run_id: str | None) -> float:
    is_active = _status(workbench, run_id) in (RUNNING, SCHEDULED)
    return POLL_SECONDS if is_active or workbench.limits is None else IDLE_POLL_SECONDS


def _wire_code(
    workbench: Workbench, form: Form, button: gr.Button, kind: gr.Radio, outputs: list[Any]
) -> None:
    """Show the form's settings as code to copy; `outputs` are the code and its column."""

    def write(values: dict, request: gr.Request) -> list[Any]:
        settings, chosen = settings_of(form, values), values[kind]
        access = api_access(workbench, request)
        text = code_update(lambda: workbench.training_code(settings, chosen, access), chosen)
        return [text, gr.update(visible=True)]

    gr.on([button.click, kind.input], write, {*form.values(), kind}, outputs, **FOLLOWING)


def _digest(*state: Any) -> str:
    """Return a short digest of the `repr` of some values."""
    return hashlib.blake2b(repr(state).encode(), digest_size=8).hexdigest()


def _status(workbench: Workbench, run_id: str | None) -> str:
    """Return the status of the picked run; "" if none is picked or it no longer exists."""
    try:
        return workbench.find(run_id).state().status if run_id else ""
    except RunError:
        return ""


def _button_updates(workbench: Workbench, run_id: str | None) -> list[Any]:
    """Return the updates of Train, Continue, Evaluate, Train as a new run, and Stop for the picked run."""
    try:
        run = workbench.find(run_id) if run_id else None
    except RunError:
        run = None
    if run is None:
        return [gr.update(visible=True), *[gr.update(visible=False)] * 4]
    state = workbench.describe(run)
    ended, may_change = state["status"] in ENDED, state["may_change"]
    is_repeatable = state["status"] in (FAILED, KILLED) and state["settings"] is not None
    return [
        gr.update(visible=ended or not may_change),
        gr.update(visible=may_change and state["can_continue"]),
        gr.update(visible=may_change and state["can_continue"] and state["result"] is None),
        gr.update(visible=may_change and is_repeatable),
        gr.update(visible=may_change and not ended, value="Stopping…" if run.stop_requested() else "Stop"),
    ]
