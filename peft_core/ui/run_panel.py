"""The right side of the Train tab: the picked run as it is on disk, and the actions on it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from peft_core.errors import RunError
from peft_core.merging.certificate import certificate_of_merged
from peft_core.problem_types import SINGLE, headline
from peft_core.runs import ENDED, Run
from peft_core.service.workbench import Workbench
from peft_core.ui.events import (
    PRIVATE,
    cancel_pending,
    download_by_click,
    plot,
    show_errors,
    show_stream_errors,
)
from peft_core.ui.fields import DEFAULTS, Form
from peft_core.ui.form import fill
from peft_core.ui.run_ownership import OwnershipControls, build_ownership, wire_ownership
from peft_core.views.cards import result_card
from peft_core.views.charts import curve, curve_frame
from peft_core.views.components import certificate, message, method_picture, run_progress, task_progress

INTRO = '<div class="intro"><h3>What Train does</h3></div>'


@dataclass(frozen=True)
class RunPanel:
    """The components of the panel; which are visible depends on the run."""

    intro: gr.HTML
    picture: gr.HTML
    card: gr.HTML
    curves: gr.Row
    loss: gr.Plot
    metric: gr.Plot
    actions: gr.Row
    try_it: gr.Button
    use_settings: gr.Button
    merge: gr.Button
    adapter_zip: gr.Button
    merged_zip: gr.Button
    proof: gr.HTML
    ownership: OwnershipControls

    @property
    def outputs(self) -> list[Any]:
        """The components that `updates` covers."""
        return [
            self.intro, self.picture, self.card, self.curves, self.actions, self.merge, self.merged_zip,
            self.proof, *self.ownership.outputs,
        ]  # fmt: skip


@dataclass(frozen=True)
class RunSnapshot:
    """A run as one poll sees it.

    Attributes:
        signature: changes with all that is shown of the run, except the curves and the progress.
        progress: identifies the points of the curves and the progress bar.
        updates: the updates of curves and progress that differ from the last snapshot.
    """

    signature: str = ""
    progress: tuple[str, str] = ("", "")
    updates: dict[Any, Any] = field(default_factory=dict)


def build_run_panel() -> RunPanel:
    """Build the layout."""
    intro = gr.HTML(INTRO)
    picture = gr.HTML(method_picture(DEFAULTS.to_dict(), "query", (384, 384)), elem_id="picture")
    card = gr.HTML(elem_id="panel", visible=False)
    with gr.Row(visible=False, elem_classes="curves") as curves:
        loss = gr.Plot(show_label=False, elem_id="loss", container=False)
        metric = gr.Plot(show_label=False, elem_id="metric", container=False)
    with gr.Row(visible=False, elem_classes="actions") as actions:
        try_it = gr.Button("Try it", elem_id="try-it", variant="primary")
        use_settings = gr.Button("Use settings", elem_id="use-settings")
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
        use_settings,
        merge,
        adapter_zip,
        merged_zip,
        proof,
        build_ownership(),
    )


def poll(
    panel: RunPanel, workbench: Workbench, run_id: str | None, last_progress: tuple[str, str]
) -> RunSnapshot:
    """Return a snapshot of the picked run, with updates relative to the last snapshot's `progress`."""
    if run_id is None:
        return RunSnapshot()
    try:
        run = workbench.find(run_id)
    except RunError as error:
        return RunSnapshot(str(error))
    description, metrics = workbench.describe(run), run.metrics()
    ended = description["status"] in ENDED
    signature = f"{bool(metrics)} {run.stop_requested()} {description if ended else description['status']}"
    points, progress = f"{run_id} {len(metrics)}", "" if ended else run_progress(description)
    changes = _curves(panel, metrics, description) if points != last_progress[0] else {}
    if progress != last_progress[1]:
        changes[panel.card] = gr.update(value=progress or result_card(description))
    return RunSnapshot(signature, (points, progress), changes)


def updates(panel: RunPanel, workbench: Workbench, run_id: str | None) -> dict[Any, Any]:
    """Return the updates of `RunPanel.outputs` for the picked run.

    If no run is picked, they show the picture of the method that is chosen in the form.
    """
    hidden = {component: gr.update(visible=False) for component in _sections(panel)}
    if run_id is None:
        return {**hidden, **_visible(panel.intro, panel.picture)}
    try:
        run = workbench.find(run_id)
        description = workbench.describe(run)
        return {
            **hidden,
            **_run_updates(panel, run, description),
            **panel.ownership.updates(workbench, run, description),
        }
    except RunError as error:
        return {**hidden, panel.card: gr.update(visible=True, value=message(str(error)))}


def wire_run_panel(
    panel: RunPanel,
    workbench: Workbench,
    picker: gr.Radio,
    tabs: gr.Tabs,
    form: Form,
    refresh_token: gr.Textbox,
) -> None:
    """Wire Try it, Use settings, Merge and the downloads; clearing `refresh_token` redraws the panel."""

    @show_errors
    def take_settings(run_id: str) -> dict[Any, Any]:
        config = workbench.settings_of(run_id)
        facts = workbench.describe_model(config.model_name_or_path, config.revision)
        return fill(form, config, facts["modules"])

    @show_stream_errors
    def merge(run_id: str) -> Iterator[dict[str, Any]]:
        for report in workbench.merge(run_id):
            yield gr.update(visible=True, value=task_progress(report.share, report.description))

    panel.try_it.click(lambda: gr.update(selected="inference"), None, tabs, **PRIVATE)
    panel.use_settings.click(take_settings, picker, list(form.values()), **PRIVATE)
    merged = panel.merge.click(merge, picker, panel.proof, **PRIVATE)
    cancel_pending(picker.change, merged)
    for ended in (merged.success, merged.failure):  # both remove the progress bar
        ended(lambda: "", None, refresh_token, **PRIVATE)
    wire_ownership(panel.ownership, workbench, picker, refresh_token)
    for button, kind in ((panel.adapter_zip, "adapter"), (panel.merged_zip, "merged")):
        download_by_click(button, partial(workbench.archive, kind=kind), [picker], f"file-{kind}")


def _run_updates(panel: RunPanel, run: Run, description: dict[str, Any]) -> dict[Any, Any]:
    ended = description["status"] in ENDED
    changes: dict[Any, Any] = {
        panel.card: gr.update(
            visible=True, value=result_card(description) if ended else run_progress(description)
        )
    }
    if run.metrics():
        changes |= _visible(panel.curves)
    if ended and description["has_adapter"]:
        changes |= _visible(panel.actions)
        changes[panel.merged_zip] = gr.update(interactive=description["merged"])
        changes[panel.merge] = gr.update(visible=description["may_change"])
    proof = certificate_of_merged(run)
    if proof is not None:
        changes[panel.proof] = gr.update(visible=True, value=certificate(proof.to_dict()))
    return changes


def _curves(panel: RunPanel, metrics: list[dict[str, Any]], description: dict[str, Any]) -> dict[Any, Any]:
    """Return the plots of a run's curves; empty before the first point is logged."""
    frame, steps = curve_frame(metrics), description.get("max_steps") or 1
    problem_type = description.get("problem_type") or SINGLE
    kinds = {panel.loss: "loss", panel.metric: headline(problem_type)} if metrics else {}
    return {component: plot(curve(frame, kind, steps, problem_type)) for component, kind in kinds.items()}


def _sections(panel: RunPanel) -> list[Any]:
    return [
        panel.intro, panel.picture, panel.card, panel.curves, panel.actions, panel.proof,
        *panel.ownership.rows,
    ]  # fmt: skip


def _visible(*components: Any) -> dict[Any, Any]:
    return {component: gr.update(visible=True) for component in components}
