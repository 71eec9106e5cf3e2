"""Run folders: whole or not at all, known by their names, read even when files are lost."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
from processes import start_python, wait_for

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.runs import Run

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from peft_core.runs import RUNNING, Run
run = Run(Path(sys.argv[1]))
with run.lock():
    run.update(status=RUNNING, step=3, max_steps=9)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs.create(tmp_path / "runs", TrainConfig())


def test_a_new_run_waits_and_holds_its_settings(run: Run) -> None:
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.json", "status.json"]
    assert run.config() == TrainConfig()
    assert run.state()["status"] == "SCHEDULED"
    assert run.state()["created"] == pytest.approx(time.time(), abs=60)
    assert [path.name for path in run.folder.parent.iterdir()] == [run.run_id]
    assert run.metrics() == []
    assert not run.has_adapter


@pytest.mark.parametrize("name", ["../../etc", "Ünïcode 名前", "-", "x" * 200, "a--b.csv", "/"])
def test_any_data_set_name_makes_an_id_that_is_found(name: str, tmp_path: Path) -> None:
    run = runs.create(tmp_path / "runs", TrainConfig(dataset_name=name))
    assert runs.find(tmp_path / "runs", run.run_id).config().dataset_name == name
    assert run.folder.parent == tmp_path / "runs"


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "../runs", "/etc", "no-such-run", "a/b", None, 7, ["a"], "A"]
)
def test_an_id_is_a_name_and_never_a_path(run_id: object, run: Run) -> None:
    with pytest.raises(RunError, match="There is no run"):
        runs.find(run.folder.parent, run_id)


def test_runs_are_listed_newest_first_without_what_is_none(tmp_path: Path) -> None:
    assert runs.list_runs(tmp_path / "nowhere") == []
    made = [runs.create(tmp_path, TrainConfig()) for _ in range(3)]
    (tmp_path / ".half-made").mkdir()
    (tmp_path / "notes.txt").touch()
    assert runs.list_runs(tmp_path) == made[::-1]


def test_a_run_without_its_process_has_failed(run: Run) -> None:
    run.update(status=runs.RUNNING, step=3, max_steps=9)
    state = run.state()
    assert state["status"] == "FAILED"
    assert "at step 3 of 9" in state["error"]


def test_a_lock_is_let_go_of_by_a_killed_process(run: Run) -> None:
    process = start_python("-c", HOLD_THE_LOCK, str(run.folder))
    try:
        wait_for(lambda: run.state()["status"] == "RUNNING" and run.is_locked())
        with pytest.raises(RunError, match="trained by another process"), run.lock():
            pass
    finally:
        process.kill()
        process.wait()
    assert run.state()["status"] == "FAILED"
    with run.lock():
        pass


@pytest.mark.parametrize("content", [None, "", "{", "[]", "\0"])
def test_a_lost_or_damaged_status_reads_as_failed(content: str | None, run: Run) -> None:
    path = run.folder / "status.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    state = run.state()
    assert state["status"] == "FAILED"
    assert run.run_id in state["error"]
    assert runs.list_runs(run.folder.parent) == [run]


def test_a_status_of_another_shape_is_no_crash(run: Run) -> None:
    (run.folder / "status.json").write_text('{"step": 1}', encoding="utf-8")
    assert run.state()["status"] == "FAILED"


@pytest.mark.parametrize("content", [None, "{", '{"r": 0}', '{"from_the_future": 1}'])
def test_lost_or_damaged_settings_get_one_sentence(content: str | None, run: Run) -> None:
    path = run.folder / "config.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match="config.json"):
        run.config()


def test_a_half_written_line_of_metrics_is_left_for_later(run: Run) -> None:
    run.log_metrics({"step": 1, "loss": 0.5})
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1, "loss": 0.5}]


def test_an_update_keeps_what_it_does_not_name(run: Run) -> None:
    run.update(step=1)
    run.update(step=2, eta=3.0)
    state = run.state()
    assert (state["status"], state["step"], state["eta"]) == ("SCHEDULED", 2, 3.0)
    assert "created" in state


def test_a_full_disk_leaves_the_old_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(run.folder.iterdir())
    with pytest.raises(RunError, match="The disk is full"):
        run.update(step=1)
    assert sorted(run.folder.iterdir()) == before
    assert "step" not in json.loads((run.folder / "status.json").read_text(encoding="utf-8"))
    with pytest.raises(RunError, match="The disk is full"):
        runs.create(run.folder.parent, TrainConfig())
    assert [path.name for path in run.folder.parent.iterdir()] == [run.run_id]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for text in ("first", "second"):
        with runs.whole_folder(tmp_path / ".staging", final) as staging:
            (staging / text).write_text(text, encoding="utf-8")
            assert not (final / text).exists()
    with pytest.raises(RuntimeError), runs.whole_folder(tmp_path / ".staging", final) as staging:
        (staging / "third").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert [path.name for path in final.iterdir()] == ["second"]


def test_stop_is_a_file(run: Run) -> None:
    assert not run.stop_requested()
    run.request_stop()
    assert Run(run.folder).stop_requested()


def test_a_run_that_continues_forgets_the_steps_it_takes_again_and_its_result(run: Run) -> None:
    for row in ({"step": 4, "loss": 1.0}, {"step": 5, "loss": 0.9}, {"step": 4, "test_accuracy": 0.5}):
        run.log_metrics(row)
    run.forget_metrics_after(4)
    assert run.metrics() == [{"step": 4, "loss": 1.0}]
