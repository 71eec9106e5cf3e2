"""The page: the runs at the side, three tabs, and the endpoints, over one workbench."""

import os

import gradio as gr

from peft_core.errors import RunError
from peft_core.ui.api import build_api
from peft_core.ui.compare import build_compare
from peft_core.ui.events import PRIVATE
from peft_core.ui.inference.tab import build_inference
from peft_core.ui.requests import refuse_downloads
from peft_core.ui.sessions import keep_no_values
from peft_core.ui.sidebar import build_sidebar, describe_usage, run_choices
from peft_core.ui.theme import TOGGLE_THEME
from peft_core.ui.train import build_train
from peft_core.workbench import Workbench

# The picked run stands in the address, so that a reload or a copied link opens it again.
REMEMBER_RUN = """(run) => {
  const url = new URL(window.location);
  if (run) url.searchParams.set('run', run); else url.searchParams.delete('run');
  window.history.replaceState(null, '', url);
}"""

# Seconds between looks of gradio's queue for something to do: its own on Windows. Elsewhere it looks 1,000
# times a second: a twentieth of a core for nothing, and each time a training is interrupted.
LOOKS, PROGRESS_LOOKS = 0.05, 0.1

# On a narrow screen the open list of runs would cover the page.
FOLD_SIDEBAR = """() => {
  if (window.innerWidth < 768) document.querySelector('.sidebar.open .toggle-button')?.click();
}"""


def build_page(workbench: Workbench) -> gr.Blocks:
    """The whole app; nothing is started or written until somebody opens it."""
    refuse_downloads()
    keep_no_values()
    with gr.Blocks(title="PEFT Workbench", fill_width=True, delete_cache=(3600, 86400)) as page:
        with gr.Row(elem_classes="top"):
            gr.HTML(_header(), elem_id="header")
            dark = gr.Button("◐", elem_id="dark", scale=0, min_width=44)
        if workbench.limits is not None:
            gr.HTML(f'<div class="message note">{workbench.limits.describe()}</div>', elem_id="limits")
        build_api(workbench)  # before the tabs, so that the endpoints get the plain names
        sidebar = build_sidebar()
        picker = sidebar.picker
        standing = gr.State("")  # the picked run and how it stands: what is asked of it follows both
        with gr.Tabs(selected="train") as tabs:
            with gr.Tab("Train", id="train"):
                form = build_train(page, workbench, sidebar, standing, tabs)
            with gr.Tab("Compare parameters", id="compare"):
                build_compare(workbench, form, tabs)
            with gr.Tab("Inference", id="inference"):
                build_inference(workbench, picker, standing)

        def open_run(request: gr.Request) -> list:
            """The run in the address, else the one that trains now; and the disk that is used."""
            workbench.start()
            first = _first_run(workbench, request)
            runs = gr.update(choices=run_choices(workbench, first), value=first)
            return [runs, describe_usage(workbench)]

        page.load(fn=None, js=FOLD_SIDEBAR)
        dark.click(fn=None, js=TOGGLE_THEME)
        page.load(open_run, None, [picker, sidebar.usage], **PRIVATE)
        picker.change(fn=None, inputs=picker, js=REMEMBER_RUN)
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = LOOKS, PROGRESS_LOOKS
    return page


def _first_run(workbench: Workbench, request: gr.Request) -> str | None:
    asked = request.query_params.get("run")
    if asked:
        try:
            return workbench.find(asked).run_id
        except RunError:
            why = " It was removed to make room." if workbench.was_expired(asked) else ""
            gr.Warning(f"The run in the address is not here any more.{why}")
    current = workbench.current_run()
    return current.run_id if current else None


def _header() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        "<h1>PEFT Workbench <small>fine-tune a medium-size language model on your own text</small></h1>"
        f'<span class="machine">{cores} CPU core{"s" if cores != 1 else ""}</span>'
    )
