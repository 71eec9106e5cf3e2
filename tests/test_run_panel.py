"""What an open page is sent of a run: what moved, and all of it anew only where the run stands otherwise."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.runs import FINISHED, KILLED, RunInTraining
from peft_core.ui.run_panel import Glance, RunPanel, build_run_panel, glance, updates
from peft_core.workbench import Workbench

NOTHING = ("", "")


@pytest.fixture
def workbench(tmp_path: Path) -> Workbench:
    return Workbench.open(tmp_path, public=False)


@pytest.fixture
def panel() -> RunPanel:
    with gr.Blocks():
        return build_run_panel()


@pytest.fixture
def run(workbench: Workbench) -> Iterator[RunInTraining]:
    run = RunInTraining(runs.create(workbench.runs_dir, TrainConfig()).folder)
    with run.lock():
        run.begin()
        run.update(stage="training", step=4, max_steps=100, eta=9.0)
        run.log_metrics({"step": 4, "loss": 0.7})
        yield run


def test_a_look_sends_what_moved_and_nothing_twice(
    panel: RunPanel, workbench: Workbench, run: RunInTraining
) -> None:
    def look(held: tuple[str, str]) -> Glance:
        return glance(panel, workbench, run.run_id, held)

    first = look(NOTHING)
    assert set(first.moved) == {panel.card, panel.loss, panel.metric}
    assert look(first.holds) == Glance(first.stands, first.holds)

    run.update(step=8, eta=8.0)
    later = look(first.holds)
    assert set(later.moved) == {panel.card} and "step 8" in later.moved[panel.card]["value"]
    run.log_metrics({"step": 8, "loss": 0.6})
    last = look(later.holds)
    assert set(last.moved) == {panel.loss, panel.metric}
    assert first.stands == later.stands == last.stands


def test_a_run_that_stands_otherwise_is_told_from_one_that_moves(
    panel: RunPanel, workbench: Workbench, run: RunInTraining
) -> None:
    seen = [glance(panel, workbench, run.run_id, NOTHING).stands]
    run.request_stop()
    seen.append(glance(panel, workbench, run.run_id, NOTHING).stands)
    for status in (KILLED, FINISHED):
        run.update(status=status)
        ended = glance(panel, workbench, run.run_id, NOTHING)
        assert panel.card not in ended.moved, "the result's card belongs to `updates`"
        seen.append(ended.stands)
    assert len(set(seen)) == 4


def test_a_result_takes_the_place_of_progress_that_a_late_look_left(
    panel: RunPanel, workbench: Workbench, run: RunInTraining
) -> None:
    late = glance(panel, workbench, run.run_id, NOTHING)
    run.update(status=KILLED)
    ended = glance(panel, workbench, run.run_id, late.holds)
    assert "progressbar" in late.moved[panel.card]["value"]
    assert "progressbar" not in ended.moved[panel.card]["value"]


def test_a_run_with_its_first_point_stands_otherwise(panel: RunPanel, workbench: Workbench) -> None:
    run = RunInTraining(runs.create(workbench.runs_dir, TrainConfig()).folder)
    before = glance(panel, workbench, run.run_id, NOTHING)
    assert panel.loss not in before.moved
    assert updates(panel, workbench, run.run_id)[panel.curves]["visible"] is False
    run.log_metrics({"step": 1, "loss": 0.7})
    assert glance(panel, workbench, run.run_id, before.holds).stands != before.stands
    assert updates(panel, workbench, run.run_id)[panel.curves]["visible"] is True


def test_no_run_and_a_lost_one(panel: RunPanel, workbench: Workbench) -> None:
    assert glance(panel, workbench, None, NOTHING) == Glance()
    assert "there is no run" in glance(panel, workbench, "gone-r8-000000", NOTHING).stands.lower()
