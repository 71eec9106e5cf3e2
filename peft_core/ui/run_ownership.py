"""Controls for the owner of the picked run: a share link on a public demo, and delete with undo."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from peft_core.runs import ENDED, Run
from peft_core.service.workbench import Workbench
from peft_core.ui.events import PRIVATE, set_values, show_errors
from peft_core.ui.sidebar import run_choices

# Completes a path within this app to a full URL.
FULL_URL = "(path) => path ? new URL(path, window.location.href).href : ''"


@dataclass(frozen=True)
class OwnershipControls:
    """The components; which are visible depends on the run and on the visitor."""

    sharing: gr.Row
    share: gr.Button
    link: gr.Textbox
    revoke: gr.Button
    share_path: gr.Textbox
    removal: gr.Row
    delete: gr.Button
    undo: gr.Button
    deleted: gr.Textbox

    @property
    def outputs(self) -> list[gr.Row | gr.Button | gr.Textbox]:
        """The components that `updates` covers."""
        return [self.sharing, self.share, self.link, self.revoke, self.share_path, self.removal]

    @property
    def rows(self) -> list[gr.Row]:
        """The rows that are hidden while no run is picked."""
        return [self.sharing, self.removal]

    def updates(self, workbench: Workbench, run: Run, description: dict[str, Any]) -> dict[Any, Any]:
        """Return the updates of `outputs` for a run."""
        may_change, secret = description["may_change"], workbench.access.shared_secret(run)
        can_share = may_change and workbench.limits is not None
        return {
            self.sharing: gr.update(visible=can_share),
            self.share: gr.update(visible=secret is None),
            self.link: gr.update(visible=secret is not None),
            self.revoke: gr.update(visible=secret is not None),
            self.share_path: f"?run={run.run_id}#key={secret}" if secret else "",
            self.removal: gr.update(visible=may_change and description["status"] in ENDED),
        }


def build_ownership() -> OwnershipControls:
    """Build the layout."""
    with gr.Row(visible=False, elem_classes="actions") as sharing:
        share = gr.Button("Share", elem_id="share-run", size="sm", scale=0, min_width=110)
        link = gr.Textbox(
            label="Whoever has this link can read the run and try its model",
            elem_id="share-link",
            interactive=False,
            buttons=["copy"],
            visible=False,
        )
        revoke = gr.Button("End sharing", elem_id="revoke-link", size="sm", scale=0, min_width=110)
    share_path = gr.Textbox(visible="hidden")
    with gr.Row(visible=False, elem_classes="actions") as removal:
        delete = gr.Button("Delete run", elem_id="delete-run", size="sm", scale=0, min_width=110)
    deleted = gr.Textbox(visible="hidden")  # the id of the run that Undo restores
    undo = gr.Button("Undo", elem_id="undo-delete", size="sm", scale=0, min_width=110, visible=False)
    return OwnershipControls(sharing, share, link, revoke, share_path, removal, delete, undo, deleted)


def wire_ownership(
    controls: OwnershipControls, workbench: Workbench, picker: gr.Radio, refresh_token: gr.Textbox
) -> None:
    """Wire share, end sharing, delete and undo; clearing `refresh_token` redraws the panel."""
    access = workbench.access
    controls.share_path.change(
        fn=None, js=FULL_URL, inputs=controls.share_path, outputs=controls.link, **PRIVATE
    )
    for button, change in ((controls.share, access.share), (controls.revoke, access.revoke)):
        change_link = show_errors(lambda run_id, change=change: change(run_id) and None)
        changed = button.click(change_link, picker, None, **PRIVATE)
        changed.success(lambda: "", None, refresh_token, **PRIVATE)
    _wire_removal(controls, workbench, picker)


def _wire_removal(controls: OwnershipControls, workbench: Workbench, picker: gr.Radio) -> None:
    deleted, undo = controls.deleted, controls.undo

    @show_errors
    def delete(run_id: str) -> dict[Any, Any]:
        workbench.delete(run_id)
        return {
            picker: gr.update(choices=run_choices(workbench), value=None),
            deleted: run_id,
            undo: gr.update(visible=True, value=f"Undo: bring back {run_id}"),
        }

    @show_errors
    def restore(run_id: str) -> dict[Any, Any]:
        workbench.restore(run_id)
        return {
            picker: gr.update(choices=run_choices(workbench), value=run_id),
            undo: gr.update(visible=False),
        }

    controls.delete.click(delete, picker, [picker, deleted, undo], **PRIVATE)
    undo.click(restore, deleted, [picker, undo], **PRIVATE)
    set_values([picker.input], {undo: gr.update(visible=False)})
