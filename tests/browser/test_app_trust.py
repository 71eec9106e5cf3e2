"""Tests of killed, diverged and damaged runs in a real Chromium, and of the remedies that the page offers."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from app_server import Server
from conftest import Open
from playwright.sync_api import Page, expect
from processes import start_python, wait_for

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.runs import Run, list_runs
from peft_core.runs.checkpoints import can_continue

# Train a run with one weight set to infinity before a step, as with a far too high learning rate.
DIVERGES = """
import math, sys
from peft_core.training.entry import main
from peft_core.training.trainer import RunTrainer
training_step = RunTrainer.training_step
def poisoned(self, model, *given):
    if self.state.global_step == 34:
        next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] = math.inf
    return training_step(self, model, *given)
RunTrainer.training_step = poisoned
sys.exit(main([sys.argv[1]]))
"""


def create_run(server: Server, settings: dict[str, Any], **changes: Any) -> Run:
    """Create a run that the server's queue does not start, because it is not waiting."""
    run = runs.create(server.runs_dir.parent / "created", TrainConfig.from_dict({**settings, **changes}))
    run.update(status="KILLED")
    server.runs_dir.mkdir(exist_ok=True)
    return Run(run.folder.rename(server.runs_dir / run.run_id))


def open_run(open_page: Open, run: Run) -> Page:
    page = open_page(f"?run={run.run_id}")
    expect(page.locator("#panel")).to_contain_text(run.run_id, timeout=60_000)
    return page


@pytest.fixture
def killed_run(server: Server, settings: dict[str, Any], tmp_path: Path) -> Run:
    """A run on its own copy of the data, whose process was killed after its first checkpoint."""
    data = shutil.copytree(settings["dataset_name"], tmp_path / "data")
    run = create_run(server, settings, dataset_name=str(data), num_train_epochs=100)
    process = start_python("-m", "peft_core.train", str(run.folder))
    wait_for(lambda: can_continue(run), 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return run


def test_killed_run_on_changed_data_is_refused_and_trained_as_new_run(
    server: Server, open_page: Open, killed_run: Run
) -> None:
    train_csv = Path(killed_run.config().dataset_name) / "train.csv"
    train_csv.write_text(train_csv.read_text(encoding="utf-8") + "One more row.,good\n", encoding="utf-8")
    page = open_run(open_page, killed_run)
    expect(page.locator("#panel")).to_contain_text("ended unexpectedly")
    page.click("#continue")
    refusal = "The run cannot continue: it began with 160 train rows, and there are 161 now."
    expect(page.locator("#panel")).to_contain_text(refusal, timeout=60_000)
    assert not killed_run.has_adapter

    before = {run.run_id for run in list_runs(server.runs_dir)}
    page.click("#train-again")
    wait_for(lambda: len(list_runs(server.runs_dir)) > len(before))
    (new,) = [run for run in list_runs(server.runs_dir) if run.run_id not in before]
    expect(page.locator("#panel")).to_contain_text(new.run_id)
    page.click("#stop")
    wait_for(lambda: new.state().status == "KILLED", 60)


def test_diverged_run_reports_step_and_remedy(
    server: Server, open_page: Open, settings: dict[str, Any]
) -> None:
    run = create_run(server, settings)
    process = start_python("-c", DIVERGES, str(run.folder))
    assert process.wait(timeout=120) == 2
    page = open_run(open_page, run)
    expect(page.locator("#panel")).to_contain_text("Training diverged at step 35")
    expect(page.locator("#panel")).to_contain_text("Train again with a learning rate below 0.03")
    expect(page.locator("#loss canvas")).to_be_visible()
    expect(page.locator("#continue")).to_be_visible()


def test_damaged_run_is_reported_and_deleted(server: Server, open_page: Open, finished_run: Run) -> None:
    run, whole_run = (Run(server.runs_dir / name) for name in ("damaged-r8-000001", "whole-r8-000002"))
    for copy in (run, whole_run):
        shutil.copytree(finished_run.folder, copy.folder)
    (run.results / "result.json").write_text('{"accuracy": null}')
    (run.folder / "metrics.jsonl").write_bytes((run.folder / "metrics.jsonl").read_bytes()[:300] + b"\n")
    page = open_run(open_page, run)
    panel = page.locator("#panel")
    expect(panel).to_contain_text("result.json")
    expect(panel).to_contain_text("Still usable: settings, adapter.")
    expect(page.locator("#runs")).to_contain_text(whole_run.run_id)
    page.click("#delete-run")
    expect(page.locator("#runs")).not_to_contain_text(run.run_id)
    expect(page.locator("#runs")).to_contain_text(whole_run.run_id)
    assert not run.folder.exists() and whole_run.folder.exists()
