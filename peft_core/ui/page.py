"""The page: the sidebar of runs, three tabs, and the API endpoints, over one workbench."""

import os

import gradio as gr

from peft_core.errors import RunError
from peft_core.service.workbench import Workbench
from peft_core.ui.api import build_api
from peft_core.ui.compare import build_compare
from peft_core.ui.events import PRIVATE
from peft_core.ui.inference.tab import build_inference
from peft_core.ui.requests import refuse_downloads
from peft_core.ui.sessions import keep_no_values
from peft_core.ui.sidebar import build_sidebar, describe_usage, run_choices
from peft_core.ui.theme import TOGGLE_THEME
from peft_core.ui.train import build_train

# Writes the picked run into the address, so that a reload or a copied link opens it again.
REMEMBER_RUN = """(run) => {
  const url = new URL(window.location);
  if (run) url.searchParams.set('run', run); else url.searchParams.delete('run');
  window.history.replaceState(null, '', url);
}"""

# Seconds that gradio's queue sleeps between checks for work; gradio's own values on Windows. Elsewhere it
# checks 1,000 times a second, which takes a twentieth of a core and interrupts a training each time.
QUEUE_SLEEP, PROGRESS_SLEEP = 0.05, 0.1

# On a narrow screen the open list of runs would cover the page.
FOLD_SIDEBAR = """() => {
  if (window.innerWidth < 768) document.querySelector('.sidebar.open .toggle-button')?.click();
}"""


def build_page(workbench: Workbench) -> gr.Blocks:
    """Build the whole app; nothing is started or written until somebody opens it."""
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
        run_version = gr.State("")  # the picked run and its status; the Inference tab follows its changes
        with gr.Tabs(selected="train") as tabs:
            with gr.Tab("Train", id="train"):
                form = build_train(page, workbench, sidebar, run_version, tabs)
            with gr.Tab("Compare parameters", id="compare"):
                build_compare(workbench, form, tabs)
            with gr.Tab("Inference", id="inference"):
                build_inference(workbench, picker, run_version)

        def open_run(request: gr.Request) -> list:
            """Pick the run in the address, else the current run, and show the disk usage."""
            workbench.start()
            first = _first_run(workbench, request)
            runs = gr.update(choices=run_choices(workbench, first), value=first)
            return [runs, describe_usage(workbench)]

        page.load(fn=None, js=FOLD_SIDEBAR)
        dark.click(fn=None, js=TOGGLE_THEME)
        page.load(open_run, None, [picker, sidebar.usage], **PRIVATE)
        picker.change(fn=None, inputs=picker, js=REMEMBER_RUN)
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = QUEUE_SLEEP, PROGRESS_SLEEP
    return page


def _first_run(workbench: Workbench, request: gr.Request) -> str | None:
    run_id = request.query_params.get("run")
    if run_id:
        try:
            return workbench.find(run_id).run_id
        except RunError:
            reason = " It was removed to make room." if workbench.was_expired(run_id) else ""
            gr.Warning(f"The run in the address is not here any more.{reason}")
    current = workbench.current_run()
    return current.run_id if current else None


def _header() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        "<h1>PEFT Workbench <small>fine-tune a medium-size language model on your own text</small></h1>"
        f'<span class="machine">{cores} CPU core{"s" if cores != 1 else ""}</span>'
    )
