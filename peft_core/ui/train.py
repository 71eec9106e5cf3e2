"""The Train tab: the form and its buttons at the left, the picked run at the right."""

import hashlib
from typing import Any

import gradio as gr

from peft_core.errors import ConfigError, ModelError, PeftCoreError, RunError
from peft_core.pictures.pieces import message
from peft_core.runs import ENDED, FAILED, KILLED, RUNNING, SCHEDULED
from peft_core.ui.code import api_access, code_kinds, code_view, shown
from peft_core.ui.data_card import wire_data_card
from peft_core.ui.events import FOLLOWING, PRIVATE, at_once, sentence, then_at_once
from peft_core.ui.fields import Form
from peft_core.ui.form import build_form, settings_of, wire_form
from peft_core.ui.run_panel import RunPanel, build_run_panel, glance, updates, wire_run_panel
from peft_core.ui.sidebar import Sidebar, describe_usage, run_choices
from peft_core.workbench import Workbench

# The run shows at the top of the page, whichever cards are open.
TO_THE_TOP = """() => {
  if (document.querySelector('#panel .running')) window.scrollTo({ top: 0, behavior: 'smooth' });
}"""
TICK = 1.0  # seconds between looks at the run folder
# On a public demo while the picked run neither waits nor trains: 100 open pages would take a core.
IDLE_TICK = 10.0


def build_train(
    page: gr.Blocks, workbench: Workbench, sidebar: Sidebar, standing: gr.State, tabs: gr.Tabs
) -> Form:
    """Layout first, wiring at the foot; the form's fields come back for the other tabs to fill."""
    picker = sidebar.picker
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=4, min_width=320):
            form, recipe, cards = build_form(workbench)
            strip = gr.HTML('<div class="cost skeleton">Counting parameters…</div>', elem_id="cost")
            refused = gr.HTML(elem_id="refused")
            with gr.Row(elem_classes="go"):
                go = gr.Button("Train", variant="primary", elem_id="train")
                resume = gr.Button("Continue", elem_id="continue", visible=False)
                evaluate = gr.Button("Evaluate", elem_id="evaluate", visible=False)
                again = gr.Button("Train as a new run", elem_id="train-again", visible=False)
                stop = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
                show_code = gr.Button("As code", elem_id="show-code", scale=0, min_width=110)
            with gr.Column(visible=False) as codes:
                kind = code_kinds("These settings, in plain Python", "settings-code-kind")
                code = code_view("settings-code")
        with gr.Column(scale=6, min_width=320, elem_classes="happening"):
            panel = build_run_panel()
    seen = gr.Textbox(visible="hidden")  # a word for how all stands that is shown of the picked run

    def started(answer: dict[str, Any]) -> Any:
        if answer["waiting_for"]:
            gr.Info(f"{answer['run_id']} waits behind {answer['waiting_for']}.")
        return gr.update(choices=run_choices(workbench), value=answer["run_id"])

    def train(values: dict) -> list[Any]:
        try:
            picked = started(workbench.train(settings_of(form, values)))
        except (ConfigError, ModelError) as error:  # the strip says so already, or is about to
            return [gr.skip(), "", message(str(error))]
        except PeftCoreError as error:
            return [gr.skip(), message(str(error)), gr.skip()]
        return [picked, "", gr.skip()]

    edits = [recipe.input, *[field.input for field in form.values()]]
    at_once(edits, {refused: "", codes: gr.update(visible=False)})  # before what fills in a recipe's settings
    wire_data_card(cards.data, form, cards.accordions[1], cards.facts, workbench, go)
    wire_form(page, workbench, form, recipe, cards, strip, panel.picture)
    wire_run_panel(panel, workbench, picker, tabs, form, seen)
    _wire_looks(workbench, panel, sidebar, seen, standing, [go, resume, evaluate, again, stop])
    go.click(train, set(form.values()), [picker, refused, strip], **PRIVATE).then(fn=None, js=TO_THE_TOP)
    _wire_code(workbench, form, show_code, kind, [code, codes])
    for button, go_on in ((resume, workbench.resume), (evaluate, workbench.evaluate)):
        continued = button.click(
            sentence(lambda run_id, go_on=go_on: go_on(run_id) and None), picker, None, **PRIVATE
        )
        continued.success(lambda: "", None, seen, **PRIVATE)  # shows the run anew at once
    again.click(sentence(lambda run_id: started(workbench.train_again(run_id))), picker, picker, **PRIVATE)
    stop.click(sentence(lambda run_id: workbench.stop(run_id) and None), picker, None, **PRIVATE)
    return form


def _wire_looks(
    workbench: Workbench,
    panel: RunPanel,
    sidebar: Sidebar,
    seen: gr.Textbox,
    standing: gr.State,
    buttons: list[gr.Button],
) -> None:
    """The page looks at the picked run each second; `buttons` are those of `_buttons`."""
    picker, held, timer = sidebar.picker, gr.State(), gr.Timer(TICK)

    def look(run_id: str | None, last: str, before: tuple[str, str] | None) -> dict[Any, Any]:
        """What moves while a run trains. If anything else has changed, so has `seen`: all is shown anew.

        A page asks every second, also beside a training: what is sent is little, and nothing mostly. It does
        not queue, which halves what a look costs; only a change of a component, not of a State, follows then.
        """
        told, choices = glance(panel, workbench, run_id, before or ("", "")), run_choices(workbench, run_id)
        lost = last and before is None  # the session is not kept any more: the next look has all shown anew
        found = "" if lost else _word_for(run_id, choices, told.stands)
        return {
            seen: gr.skip() if found == last else found,
            held: gr.skip() if told.holds == before else told.holds,
            **told.moved,
        }

    def show(run_id: str | None) -> dict[Any, Any]:
        """The picked run as it stands on disk."""
        return {
            picker: gr.update(choices=run_choices(workbench, run_id)),
            sidebar.usage: describe_usage(workbench),
            timer: gr.update(value=_seconds_between_looks(workbench, run_id)),
            standing: f"{run_id} {_status(workbench, run_id)}" if run_id else "",
            **updates(panel, workbench, run_id),
            **dict(zip(buttons, _buttons(workbench, run_id), strict=True)),
        }

    moving = [seen, held, panel.card, panel.loss, panel.metric]
    timer.tick(look, [picker, seen, held], moving, queue=False, **PRIVATE)
    then_at_once([picker.change], look, [picker, seen, held], moving)
    seen.change(show, picker, [picker, sidebar.usage, timer, standing, *panel.shown, *buttons], **FOLLOWING)


def _seconds_between_looks(workbench: Workbench, run_id: str | None) -> float:
    moves = _status(workbench, run_id) in (RUNNING, SCHEDULED)
    return TICK if moves or workbench.limits is None else IDLE_TICK


def _wire_code(
    workbench: Workbench, form: Form, button: gr.Button, kind: gr.Radio, outputs: list[Any]
) -> None:
    """The settings of the form as code to copy; `outputs` are the code and what holds it."""

    def write(values: dict, request: gr.Request) -> list[Any]:
        settings, chosen = settings_of(form, values), values[kind]
        access = api_access(workbench, request)
        text = shown(lambda: workbench.training_code(settings, chosen, access), chosen)
        return [text, gr.update(visible=True)]

    gr.on([button.click, kind.input], write, {*form.values(), kind}, outputs, **FOLLOWING)


def _word_for(*known: Any) -> str:
    """A short word that is another one for anything else."""
    return hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()


def _status(workbench: Workbench, run_id: str | None) -> str:
    """How the picked run stands; empty for none, and for one that is gone."""
    try:
        return workbench.find(run_id).state().status if run_id else ""
    except RunError:
        return ""


def _buttons(workbench: Workbench, run_id: str | None) -> list[Any]:
    """Updates of Train, Continue, Evaluate, Train as a new run, and Stop for the picked run."""
    try:
        run = workbench.find(run_id) if run_id else None
    except RunError:
        run = None
    if run is None:
        return [gr.update(visible=True), *[gr.update(visible=False)] * 4]
    state = workbench.describe(run)
    ended, mine = state["status"] in ENDED, state["may_change"]
    word = "Stopping…" if run.stop_requested() else "Stop"
    return [
        gr.update(visible=ended or not mine),
        gr.update(visible=mine and state["can_continue"]),
        gr.update(visible=mine and state["can_continue"] and state["result"] is None),
        gr.update(visible=mine and state["status"] in (FAILED, KILLED) and state["settings"] is not None),
        gr.update(visible=mine and not ended, value=word),
    ]
