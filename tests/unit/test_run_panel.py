"""Polling of a run: a page gets the changed components, and all of them once the run's signature changes."""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.runs import FINISHED, KILLED, RunInTraining
from peft_core.service.workbench import Workbench
from peft_core.ui.run_panel import RunPanel, RunSnapshot, build_run_panel, poll, updates

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


def test_poll_sends_only_changed_components(
    panel: RunPanel, workbench: Workbench, run: RunInTraining
) -> None:
    def poll_again(last_progress: tuple[str, str]) -> RunSnapshot:
        return poll(panel, workbench, run.run_id, last_progress)

    first = poll_again(NOTHING)
    assert set(first.updates) == {panel.card, panel.loss, panel.metric}
    assert poll_again(first.progress) == RunSnapshot(first.signature, first.progress)

    run.update(step=8, eta=8.0)
    later = poll_again(first.progress)
    assert set(later.updates) == {panel.card} and "step 8" in later.updates[panel.card]["value"]
    run.log_metrics({"step": 8, "loss": 0.6})
    last = poll_again(later.progress)
    assert set(last.updates) == {panel.loss, panel.metric}
    assert first.signature == later.signature == last.signature


def test_poll_signature_changes_with_run_status(
    panel: RunPanel, workbench: Workbench, run: RunInTraining
) -> None:
    signatures = [poll(panel, workbench, run.run_id, NOTHING).signature]
    run.request_stop()
    signatures.append(poll(panel, workbench, run.run_id, NOTHING).signature)
    for status in (KILLED, FINISHED):
        run.update(status=status)
        ended = poll(panel, workbench, run.run_id, NOTHING)
        assert panel.card not in ended.updates, "the result's card belongs to `updates`"
        signatures.append(ended.signature)
    assert len(set(signatures)) == 4


def test_poll_after_run_ended_removes_progress_bar(
    panel: RunPanel, workbench: Workbench, run: RunInTraining
) -> None:
    late = poll(panel, workbench, run.run_id, NOTHING)
    run.update(status=KILLED)
    ended = poll(panel, workbench, run.run_id, late.progress)
    assert "progressbar" in late.updates[panel.card]["value"]
    assert "progressbar" not in ended.updates[panel.card]["value"]


def test_poll_signature_changes_with_first_metrics(panel: RunPanel, workbench: Workbench) -> None:
    run = RunInTraining(runs.create(workbench.runs_dir, TrainConfig()).folder)
    before = poll(panel, workbench, run.run_id, NOTHING)
    assert panel.loss not in before.updates
    assert updates(panel, workbench, run.run_id)[panel.curves]["visible"] is False
    run.log_metrics({"step": 1, "loss": 0.7})
    assert poll(panel, workbench, run.run_id, before.progress).signature != before.signature
    assert updates(panel, workbench, run.run_id)[panel.curves]["visible"] is True


def test_poll_without_run_or_of_missing_run_succeeds(panel: RunPanel, workbench: Workbench) -> None:
    assert poll(panel, workbench, None, NOTHING) == RunSnapshot()
    assert "there is no run" in poll(panel, workbench, "gone-r8-000000", NOTHING).signature.lower()
