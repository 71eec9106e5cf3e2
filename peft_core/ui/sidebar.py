"""The sidebar: the list of runs; the run that is picked there is the run of every tab."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import gradio as gr

from peft_core.errors import DamagedError, RunError
from peft_core.files.atomic import Stamp, stamp_of
from peft_core.files.manifests import MANIFEST_FILE
from peft_core.problem_types import headline
from peft_core.runs import FAILED, FINISHED, KILLED, RUNNING, SCHEDULED, Run, RunState
from peft_core.service.workbench import Workbench

MARKS = {RUNNING: "●", SCHEDULED: "○", FINISHED: "✓", FAILED: "✕", KILLED: "■"}
MAX_LISTED = 50  # runs in the list
DAMAGED = "damaged"


@dataclass(frozen=True)
class Sidebar:
    """The picker, whose value is a run_id, and the disk usage of the visitor's runs and uploads."""

    picker: gr.Radio
    usage: gr.HTML


def build_sidebar() -> Sidebar:
    """Build the layout.

    Gradio checks a value against the choices that it keeps with the session. It forgets old sessions and
    would then refuse every value of their pages. The initial choices are empty, since every visitor can read
    them. So `preprocess` accepts any text, and each handler checks the run for its visitor.
    """
    with gr.Sidebar(width=280):
        picker = gr.Radio(
            choices=[],
            value=None,
            label="Runs",
            elem_id="runs",
            elem_classes="runs",
        )
        usage = gr.HTML(elem_id="usage")
    picker.preprocess = lambda payload: payload if isinstance(payload, str) else None
    return Sidebar(picker, usage)


def describe_usage(workbench: Workbench) -> str:
    """Return a line with the disk usage on a public demo, and "" elsewhere."""
    usage = workbench.usage()
    return f'<p class="quiet">{usage.describe()}</p>' if usage else ""


def run_choices(workbench: Workbench, picked: str | None = None) -> list[tuple[str, str]]:
    """Return pairs of label and run_id, the newest first.

    A picked run that is not listed comes last: gradio refuses a value that is none of the choices.
    """
    choices = [(_label(run), run.run_id) for run in workbench.list_runs()[:MAX_LISTED]]
    if picked and picked not in [run_id for _, run_id in choices]:
        choices.append((f"{picked}\n{_unlisted(workbench, picked)}", picked))
    return choices


def _unlisted(workbench: Workbench, run_id: str) -> str:
    try:
        workbench.find(run_id)
    except RunError:
        return "not here any more"
    return "an older run"


def _label(run: Run) -> str:
    state = run.state()
    when = time.strftime("%d %b %H:%M", time.localtime(state.created))
    score = _score(run.folder, *map(stamp_of, (run.results / "result.json", run.results / MANIFEST_FILE)))
    if state.damage or score == DAMAGED:
        return f"{MARKS[FAILED]} {run.run_id}\n{DAMAGED} · {when}"
    return f"{MARKS[state.status]} {run.run_id}\n{score or _status_word(state)} · {when}"


def _status_word(state: RunState) -> str:
    starting = state.status == SCHEDULED and state.stage
    if state.status == KILLED:
        return "stopped"
    return "starting" if starting else state.status.lower()


@lru_cache(maxsize=1024)
def _score(folder: Path, *stamps: Stamp | None) -> str:
    """Return the headline metric of a run as text; cached until the files of its result change."""
    try:
        metrics = Run(folder).result()
        return f"{metrics[headline(metrics['problem_type'])]:.3f}"
    except DamagedError:
        return DAMAGED
    except (RunError, KeyError):
        return ""
