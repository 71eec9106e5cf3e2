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
    download_by_click,
    drop_answers,
    plot,
    sentence,
    sentence_each,
)
from peft_core.ui.fields import DEFAULTS, Form
from peft_core.ui.form import fill
from peft_core.ui.run_ownership import OwnershipControls, build_ownership, wire_ownership
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
    ownership: OwnershipControls

    @property
    def shown(self) -> list[Any]:
        """The components that `updates` speaks of."""
        return [
            self.intro, self.picture, self.card, self.curves, self.actions, self.merge, self.merged_zip,
            self.proof, *self.ownership.shown,
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
        build_ownership(),
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
            **panel.ownership.updates(workbench, run, description),
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
    wire_ownership(panel.ownership, workbench, picker, seen)
    for button, kind in ((panel.adapter_zip, "adapter"), (panel.merged_zip, "merged")):
        download_by_click(button, partial(workbench.archive, kind=kind), [picker], f"file-{kind}")


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


def _curves(panel: RunPanel, metrics: list[dict[str, Any]], description: dict[str, Any]) -> dict[Any, Any]:
    """The curves of a run, if it has begun to have any."""
    frame, steps = curve_frame(metrics), description.get("max_steps") or 1
    task = description.get("problem_type") or SINGLE
    drawn = {panel.loss: "loss", panel.metric: headline(task)} if metrics else {}
    return {component: plot(curve(frame, kind, steps, task)) for component, kind in drawn.items()}


def _stages(panel: RunPanel) -> list[Any]:
    return [
        panel.intro, panel.picture, panel.card, panel.curves, panel.actions, panel.proof,
        *panel.ownership.rows,
    ]  # fmt: skip


def _visible(*components: Any) -> dict[Any, Any]:
    return {component: gr.update(visible=True) for component in components}
