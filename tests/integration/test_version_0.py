"""Run folders of schema version 0, from before files were verified, still open; see version_0/."""

import shutil
from pathlib import Path

import pytest

from peft_core.errors import RunError
from peft_core.export.archives import zip_of
from peft_core.inference.predictor import Predictor
from peft_core.merging.certificate import certificate_of_merged, verified_certificate
from peft_core.merging.merge import merge
from peft_core.runs import Run, find, list_runs
from peft_core.runs.checkpoints import can_continue, choose_checkpoint
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.service.launcher import Launcher

FOLDER = Path(__file__).parents[1] / "version_0"


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Copy both runs, with their base model and data beside them."""
    root = Path(shutil.copytree(FOLDER, tmp_path / "version_0"))
    for path in [*root.rglob("*.json"), *root.rglob("*.jsonl")]:
        path.write_text(path.read_text(encoding="utf-8").replace("VERSION_0", str(root)), encoding="utf-8")
    (root / "runs").mkdir()
    for name in ("finished", "stopped"):
        (root / name).rename(root / "runs" / name)
    return root / "runs"


def test_list_runs_reads_version_0_runs(runs_dir: Path) -> None:
    runs = list_runs(runs_dir)
    assert {run.run_id: run.state().status for run in runs} == {"finished": "FINISHED", "stopped": "KILLED"}
    assert all(run.is_version_0 and run.damage() == [] for run in runs)
    assert [run.config().method for run in runs] == ["lora", "lora"]
    assert len(find(runs_dir, "finished").metrics()) == 65


def test_version_0_result_and_rows_are_read(runs_dir: Path) -> None:
    run = find(runs_dir, "finished")
    assert (run.result()["accuracy"], run.result().baseline.label) == (1.0, "bad")
    assert len(load_evaluation_rows(run)) == 40


def test_version_0_adapter_predicts_and_is_zipped(runs_dir: Path) -> None:
    run = find(runs_dir, "finished")
    labels = [answer.label for answer in Predictor(run.folder).predict(["Awful.", "Excellent, wonderful."])]
    assert labels == ["bad", "good"]
    assert zip_of(run, "adapter").is_file()


def test_merge_of_version_0_run_writes_certificate_inside_folder(runs_dir: Path) -> None:
    run = find(runs_dir, "finished")
    assert (run.merged / "model.safetensors").is_file()
    assert certificate_of_merged(run) is None
    with pytest.raises(RunError, match="not merged yet"):
        Predictor(run.folder, "merged")
    assert merge(run.folder) == verified_certificate(run)
    assert not (run.folder / "certificate.json").exists()


def test_resume_of_version_0_run_without_inputs_is_refused(runs_dir: Path) -> None:
    run = find(runs_dir, "stopped")
    assert not can_continue(run)
    for continue_run in (lambda: choose_checkpoint(run), lambda: Launcher(runs_dir).resume("stopped")):
        with pytest.raises(RunError, match="kept no record of its inputs; train it as a new run"):
            continue_run()
    assert Run(run.folder).state().status == "KILLED"
