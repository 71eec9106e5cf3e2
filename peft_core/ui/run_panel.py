"""The right side of the Train tab: the picked run as it stands on disk, and what can be done with it."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from peft_core.certificate import certificate_of_merged
from peft_core.errors import RunError
from peft_core.pictures.cards import result_card
from peft_core.pictures.charts import curve, curve_frame
from peft_core.pictures.pieces import certificate, message, method_picture, running, working
from peft_core.problems import SINGLE, headline
from peft_core.runs import ENDED, Run
from peft_core.ui.events import (
    PRIVATE,
    at_once,
    download_by_click,
    drop_answers,
    plot,
    sentence,
    sentence_each,
)
from peft_core.ui.fields import DEFAULTS, Form
from peft_core.ui.form import fill
from peft_core.ui.sidebar import run_choices
from peft_core.workbench import Workbench

INTRO = '<div class="intro"><h3>What Train does</h3></div>'


@dataclass(frozen=True)
class RunPanel:
    """The components of the panel; which are seen depends on the run."""

    intro: gr.HTML
    picture: gr.HTML
    card: gr.HTML
    curves: gr.Row
    loss: gr.Plot
    metric: gr.Plot
    actions: gr.Row
    try_it: gr.Button
    again: gr.Button
    merge: gr.Button
    adapter_zip: gr.Button
    merged_zip: gr.Button
    proof: gr.HTML
    sharing: gr.Row
    share: gr.Button
    link: gr.Textbox
    revoke: gr.Button
    share_path: gr.Textbox
    removal: gr.Row
    delete: gr.Button
    question: gr.Row
    confirm: gr.Button
    keep: gr.Button

    @property
    def shown(self) -> list[Any]:
        """The components that `updates` speaks of."""
        return [
            self.intro, self.picture, self.card, self.curves, self.actions, self.merge, self.merged_zip,
            self.proof, self.sharing, self.share, self.link, self.revoke, self.share_path, self.removal,
        ]  # fmt: skip


@dataclass(frozen=True)
class Glance:
    """What a look at a run finds: how it stands apart from what moves; of what moves, what it holds now, and
    the updates of what holds something else than before."""

    stands: str = ""
    holds: tuple[str, str] = ("", "")
    moved: dict[Any, Any] = field(default_factory=dict)


def build_run_panel() -> RunPanel:
    """Layout alone."""
    intro = gr.HTML(INTRO)
    drawn = method_picture(DEFAULTS.to_dict(), "query", (384, 384))
    picture = gr.HTML(drawn, elem_id="picture")
    card = gr.HTML(elem_id="panel", visible=False)
    with gr.Row(visible=False, elem_classes="curves") as curves:
        loss = gr.Plot(show_label=False, elem_id="loss", container=False)
        metric = gr.Plot(show_label=False, elem_id="metric", container=False)
    with gr.Row(visible=False, elem_classes="actions") as actions:
        try_it = gr.Button("Try it", elem_id="try-it", variant="primary")
        again = gr.Button("Use settings", elem_id="use-settings")
        merge = gr.Button("Merge", elem_id="merge")
        adapter_zip = gr.Button("Adapter zip", elem_id="get-adapter")
        merged_zip = gr.Button("Merged zip", elem_id="get-merged", interactive=False)
    proof = gr.HTML(elem_id="proof", visible=False)
    with gr.Row(visible=False, elem_classes="actions") as sharing:
        share = gr.Button("Share by a link", elem_id="share-run", size="sm", scale=0, min_width=130)
        link = gr.Textbox(
            label="Whoever has this link can read the run and try its model",
            elem_id="share-link",
            interactive=False,
            buttons=["copy"],
            visible=False,
        )
        revoke = gr.Button("End sharing", elem_id="revoke-link", size="sm", scale=0, min_width=110)
    share_path = gr.Textbox(visible="hidden")  # the browser makes it a whole address
    with gr.Row(visible=False, elem_classes="actions") as removal:
        delete = gr.Button("Delete run", elem_id="delete-run", size="sm", scale=0, min_width=110)
        with gr.Row(visible=False) as question:
            confirm = gr.Button(
                "Delete it for good", elem_id="confirm-delete", variant="stop", size="sm", scale=0
            )
            keep = gr.Button("Keep it", elem_id="keep-run", size="sm", scale=0, min_width=110)
    return RunPanel(
        intro,
        picture,
        card,
        curves,
        loss,
        metric,
        actions,
        try_it,
        again,
        merge,
        adapter_zip,
        merged_zip,
        proof,
        sharing,
        share,
        link,
        revoke,
        share_path,
        removal,
        delete,
        question,
        confirm,
        keep,
    )


def glance(panel: RunPanel, workbench: Workbench, run_id: str | None, held: tuple[str, str]) -> Glance:
    """The picked run, where the curves and the progress held this at the last look."""
    if run_id is None:
        return Glance()
    try:
        run = workbench.find(run_id)
    except RunError as error:
        return Glance(str(error))
    description, metrics = workbench.describe(run), run.metrics()
    ended = description["status"] in ENDED
    stands = f"{bool(metrics)} {run.stop_requested()} {description if ended else description['status']}"
    points, progress = f"{run_id} {len(metrics)}", "" if ended else running(description)
    moved = _curves(panel, metrics, description) if points != held[0] else {}
    if progress != held[1]:
        moved[panel.card] = gr.update(value=progress or result_card(description))
    return Glance(stands, (points, progress), moved)


def updates(panel: RunPanel, workbench: Workbench, run_id: str | None) -> dict[Any, Any]:
    """What to show of the picked run beside its curves; the picture of what is about to be trained if none
    is picked."""
    before = _visible(panel.intro, panel.picture)
    nothing = {component: gr.update(visible=False) for component in _stages(panel)}
    if run_id is None:
        return {**nothing, **before}
    try:
        run = workbench.find(run_id)
        description = workbench.describe(run)
        return {
            **nothing,
            **_of_run(panel, run, description),
            **_ownership(panel, workbench, run, description),
        }
    except RunError as error:
        return {**nothing, panel.card: gr.update(visible=True, value=message(str(error)))}


def wire_run_panel(
    panel: RunPanel, workbench: Workbench, picker: gr.Radio, tabs: gr.Tabs, form: Form, seen: gr.Textbox
) -> None:
    """Try it, use its settings, merge, download; clearing `seen` has the panel drawn anew."""

    @sentence
    def take_settings(run_id: str) -> dict[Any, Any]:
        config = workbench.settings_of(run_id)
        facts = workbench.describe_model(config.model_name_or_path, config.revision)
        return fill(form, config, facts["modules"])

    @sentence_each
    def merge(run_id: str) -> Any:
        for report in workbench.merge(run_id):
            yield gr.update(visible=True, value=working(report.share, report.what))

    panel.try_it.click(lambda: gr.update(selected="inference"), None, tabs, **PRIVATE)
    panel.again.click(take_settings, picker, list(form.values()), **PRIVATE)
    merged = panel.merge.click(merge, picker, panel.proof, **PRIVATE)
    drop_answers(picker.change, merged)
    for ended in (merged.success, merged.failure):  # either way its progress goes
        ended(lambda: "", None, seen, **PRIVATE)
    _wire_sharing(panel, workbench, picker, seen)
    _wire_removal(panel, workbench, picker)
    for button, kind in ((panel.adapter_zip, "adapter"), (panel.merged_zip, "merged")):
        download_by_click(button, partial(workbench.archive, kind=kind), [picker], f"file-{kind}")


def _wire_sharing(panel: RunPanel, workbench: Workbench, picker: gr.Radio, seen: gr.Textbox) -> None:
    """Make and end the share link of the picked run."""
    whole = "(path) => path ? new URL(path, window.location.href).href : ''"
    panel.share_path.change(fn=None, js=whole, inputs=panel.share_path, outputs=panel.link, **PRIVATE)
    access = workbench.access
    for button, change in ((panel.share, access.share), (panel.revoke, access.revoke)):
        change_link = sentence(lambda run_id, change=change: change(run_id) and None)
        done = button.click(change_link, picker, None, **PRIVATE)
        done.success(lambda: "", None, seen, **PRIVATE)  # has the panel drawn anew


def _wire_removal(panel: RunPanel, workbench: Workbench, picker: gr.Radio) -> None:
    """Delete the picked run, once a second click says so."""

    @sentence
    def delete(run_id: str) -> Any:
        workbench.delete(run_id)
        return gr.update(choices=run_choices(workbench), value=None)

    at_once([panel.delete.click], {panel.question: gr.update(visible=True)})
    over = [panel.keep.click, panel.confirm.click, picker.change]
    at_once(over, {panel.question: gr.update(visible=False)})
    panel.confirm.click(delete, picker, picker, **PRIVATE)


def _of_run(panel: RunPanel, run: Run, description: dict[str, Any]) -> dict[Any, Any]:
    ended = description["status"] in ENDED
    shown = {
        panel.card: gr.update(visible=True, value=result_card(description) if ended else running(description))
    }
    if run.metrics():
        shown |= _visible(panel.curves)
    if ended and description["has_adapter"]:
        shown |= _visible(panel.actions)
        shown[panel.merged_zip] = gr.update(interactive=description["merged"])
        shown[panel.merge] = gr.update(visible=description["may_change"])
    proof = certificate_of_merged(run)
    if proof is not None:
        shown[panel.proof] = gr.update(visible=True, value=certificate(proof.to_dict()))
    return shown


def _ownership(
    panel: RunPanel, workbench: Workbench, run: Run, description: dict[str, Any]
) -> dict[Any, Any]:
    """What an owner is offered: a share link on a public demo, and to delete a run that has ended."""
    may_change, secret = description["may_change"], workbench.access.shared_secret(run)
    can_share = may_change and workbench.limits is not None
    return {
        panel.sharing: gr.update(visible=can_share),
        panel.share: gr.update(visible=secret is None),
        panel.link: gr.update(visible=secret is not None),
        panel.revoke: gr.update(visible=secret is not None),
        panel.share_path: f"?run={run.run_id}#key={secret}" if secret else "",
        panel.removal: gr.update(visible=may_change and description["status"] in ENDED),
    }


def _curves(panel: RunPanel, metrics: list[dict[str, Any]], description: dict[str, Any]) -> dict[Any, Any]:
    """The curves of a run, if it has begun to have any."""
    frame, steps = curve_frame(metrics), description.get("max_steps") or 1
    task = description.get("problem_type") or SINGLE
    drawn = {panel.loss: "loss", panel.metric: headline(task)} if metrics else {}
    return {component: plot(curve(frame, kind, steps, task)) for component, kind in drawn.items()}


def _stages(panel: RunPanel) -> list[Any]:
    return [
        panel.intro, panel.picture, panel.card, panel.curves, panel.actions, panel.proof, panel.sharing,
        panel.removal,
    ]  # fmt: skip


def _visible(*components: Any) -> dict[Any, Any]:
    return {component: gr.update(visible=True) for component in components}
