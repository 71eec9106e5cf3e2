"""The runs at the side: the list that every tab shares; what is picked there is the run in all of them."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import gradio as gr

from peft_core.errors import DamagedError, RunError
from peft_core.files import Stamp, stamp_of
from peft_core.manifests import MANIFEST_FILE
from peft_core.problems import headline
from peft_core.runs import FAILED, FINISHED, KILLED, RUNNING, SCHEDULED, Run, RunState
from peft_core.workbench import Workbench

MARKS = {RUNNING: "●", SCHEDULED: "○", FINISHED: "✓", FAILED: "✕", KILLED: "■"}
SHOWN = 50
DAMAGED = "damaged"


@dataclass(frozen=True)
class Sidebar:
    """The picker, whose value is a run_id, and what the visitor's runs and uploads take on the disk."""

    picker: gr.Radio
    usage: gr.HTML


def build_sidebar() -> Sidebar:
    """Layout alone.

    The page that opens is sent its choices, which gradio keeps with the session. It forgets old sessions, and
    would refuse every value of such a page; the choices that all pages begin with are none, since everyone
    can read them. So a value is taken as it is then, and each handler looks it up for whoever asks.
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
    """A line for a public demo; nothing on a person's own machine."""
    usage = workbench.usage()
    return f'<p class="quiet">{usage.describe()}</p>' if usage else ""


def run_choices(workbench: Workbench, picked: str | None = None) -> list[tuple[str, str]]:
    """Pairs of label and run_id, the newest first.

    A run that is picked and not listed comes last: gradio refuses what a page sends while its value is none
    of its choices.
    """
    choices = [(_label(run), run.run_id) for run in workbench.list_runs()[:SHOWN]]
    if picked and picked not in dict(map(reversed, choices)):
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
    return f"{MARKS[state.status]} {run.run_id}\n{score or _word(state)} · {when}"


def _word(state: RunState) -> str:
    starting = state.status == SCHEDULED and state.stage
    if state.status == KILLED:
        return "stopped"
    return "starting" if starting else state.status.lower()


@lru_cache(maxsize=1024)
def _score(folder: Path, *stamps: Stamp | None) -> str:
    """The headline metric of a run, read again only if the files of its result were written anew."""
    try:
        result = Run(folder).result()
        return f"{result[headline(result['problem_type'])]:.3f}"
    except DamagedError:
        return DAMAGED
    except (RunError, KeyError):
        return ""
