"""The worker process: results, errors, cancellation, deadlines and restarts after its death."""

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from processes import ROOT, wait_for

from peft_core.errors import ConfigError, ModelError
from peft_core.progress import Progress
from peft_core.service import worker as worker_module
from peft_core.service.references import FunctionReference, tasks
from peft_core.service.worker import Cancelled, Report, Worker, WorkerError, in_thread

MANY_SETTINGS = [{"r": r} for r in range(1, 201)]
TRAINABLE = 74_498


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    worker.warm()
    yield worker
    worker.close()
    wait_for(lambda: not multiprocessing.active_children())


def kill_worker_process() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
        child.join()


def test_run_returns_value_or_raises_task_error(worker: Worker) -> None:
    assert worker.run(tasks.count, {})["trainable"] == TRAINABLE
    with pytest.raises(ConfigError, match="r is 0"):
        worker.run(tasks.count, {"r": 0})
    with pytest.raises(ModelError, match="q_proj"):
        worker.run(tasks.count, {"target_modules": ["q_proj"]})
    assert worker.run(tasks.count_all, [{"r": 0}, {}])[0]["error"].startswith("r is 0")
    assert multiprocessing.active_children(), "the work is done in another process"


def test_worker_process_has_lower_priority(worker: Worker) -> None:
    worker.run(tasks.count, {})
    (child,) = multiprocessing.active_children()
    assert psutil.Process(child.pid).nice() == min(19, psutil.Process().nice() + 5)


def test_stream_yields_progress_and_final_report(worker: Worker) -> None:
    reports = list(worker.stream(tasks.count_all, MANY_SETTINGS[:20]))
    assert [report.share for report in reports] == sorted(report.share for report in reports)
    assert isinstance(reports[-1], Report)
    assert reports[-1].share == 1.0
    assert len(reports[-1].result) == 20
    assert len(reports) > 2


def test_cancel_stops_running_task_and_next_task_runs(worker: Worker) -> None:
    report_count = 0
    with pytest.raises(Cancelled, match="nothing was saved"):
        for _ in worker.stream_cancellable("mine", tasks.count_all, MANY_SETTINGS):
            report_count += 1
            worker.cancel("somebody else's")
            worker.cancel("mine")
    assert 0 < report_count < len(MANY_SETTINGS)
    worker.cancel("mine")
    assert len(list(worker.stream_cancellable("mine", tasks.count_all, MANY_SETTINGS[:3]))[-1].result) == 3


def test_worker_killed_during_task_raises_worker_error_and_restarts(worker: Worker) -> None:
    with pytest.raises(WorkerError, match="memory ran out"):
        for number, _ in enumerate(worker.stream(tasks.count_all, MANY_SETTINGS)):
            if number == 0:
                kill_worker_process()
    assert worker.run(tasks.count, {})["trainable"] == TRAINABLE


@pytest.mark.parametrize("method", ["run", "stream"])
def test_worker_killed_between_calls_restarts(method: str, worker: Worker) -> None:
    worker.run(tasks.count, {})
    pool = worker._pool
    assert pool is not None
    kill_worker_process()
    wait_for(lambda: pool._broken)  # else the next call may be the one that notices it
    counts = (
        worker.run(tasks.count, {}) if method == "run" else list(worker.stream(tasks.count, {}))[-1].result
    )
    assert counts["trainable"] == TRAINABLE


def test_cancel_removes_waiting_task(worker: Worker) -> None:
    running = worker.stream_cancellable("first", tasks.count_all, MANY_SETTINGS)
    next(running)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, worker.stream_cancellable("second", tasks.count_all, MANY_SETTINGS))
        wait_for(lambda: "second" in worker._tickets_by_name)
        worker.cancel("second")
        worker.cancel("first")
        with pytest.raises(Cancelled):
            list(running)
        with pytest.raises(Cancelled):
            waiting.result(60)
    assert worker.run(tasks.count, {})["trainable"] == TRAINABLE


def test_function_references_resolve_to_tasks() -> None:
    used = set()
    for path in (ROOT / "peft_core/service").glob("*.py"):
        used |= set(re.findall(r"\btasks\.([a-z_]+)", path.read_text(encoding="utf-8"))) - {"py"}
    assert "count" in used and len(used) > 20
    for name in used:
        assert callable(FunctionReference("peft_core.service.tasks", name).resolve()), name


def test_close_twice_then_run_restarts_worker(worker: Worker) -> None:
    worker.close()
    worker.close()
    assert worker.run(tasks.count, {})["trainable"] == TRAINABLE


@pytest.fixture(scope="module")
def limited() -> Iterator[Worker]:
    limited = Worker(seconds=2.0)
    yield limited
    limited.close()


@pytest.fixture
def endless(tmp_path: Path) -> str:
    """Path of a pipe without a writer, so that reading it never ends."""
    os.mkfifo(tmp_path / "endless.csv")
    return str(tmp_path / "endless.csv")


@pytest.mark.parametrize("method", ["run", "stream"])
def test_task_past_deadline_raises_worker_error_and_next_task_runs(
    method: str, limited: Worker, endless: str
) -> None:
    start = time.monotonic()
    with pytest.raises(WorkerError, match="took over 2 s, the limit of this public demo"):
        call = limited.run if method == "run" else lambda *task: list(limited.stream(*task))
        call(tasks.count_rows, [endless])
    assert time.monotonic() - start > 2
    assert limited.run(tasks.count, {})["trainable"] == TRAINABLE


def test_worker_at_deadline_does_not_block_other_worker(
    worker: Worker, limited: Worker, endless: str
) -> None:
    for warm_worker in (limited, worker):
        warm_worker.run(tasks.count, {})
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(limited.run, tasks.count_rows, [endless])
        worker.run(tasks.count, {})
        assert not hanging.done()
        with pytest.raises(WorkerError, match="took over 2 s"):
            hanging.result()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
def test_task_over_memory_limit_raises_worker_error_and_next_task_runs(tmp_path: Path) -> None:
    limited = Worker(seconds=30.0, max_bytes=100_000_000)
    (tmp_path / "large.csv").write_text("text,label\n" + "a,b\n" * 1_500_000)
    (tmp_path / "small.csv").write_text("text,label\na,b\n")
    with pytest.raises(WorkerError, match="over 0.1 GB of memory|died during 'count_rows'|over 30 s"):
        limited.run(tasks.count_rows, [str(tmp_path / "large.csv")])
    assert limited.run(tasks.count_rows, [str(tmp_path / "small.csv")]) == 1
    limited.close()


def test_worker_memory_limit_without_deadline_raises_value_error() -> None:
    with pytest.raises(ValueError, match="may hang"):
        Worker(max_bytes=100_000_000)


def test_worker_shared_values_have_no_lock(worker: Worker) -> None:
    """A process killed while it has the lock of a shared value would block the others forever."""
    assert not hasattr(worker._cancelled, "get_lock") and not hasattr(worker._pid, "get_lock")


def test_in_thread_close_returns_before_task_ends() -> None:
    """A closed page may close the generator in the event loop's thread."""
    may_finish, stopped_tasks = threading.Event(), []

    def upload(progress: Progress) -> None:
        progress(0.5, "Uploading")
        may_finish.wait(30)
        try:
            progress(1.0, "Pushed")
        except Cancelled:
            stopped_tasks.append("stopped")

    reports = in_thread(upload)
    assert next(reports).description == "Uploading"
    start = time.monotonic()
    reports.close()
    assert time.monotonic() - start < 5
    may_finish.set()
    wait_for(lambda: stopped_tasks == ["stopped"])


def test_stream_cancellable_close_cancels_task(worker: Worker) -> None:
    start = time.monotonic()
    list(worker.stream(tasks.count_all, MANY_SETTINGS[:40]))
    full_seconds = (time.monotonic() - start) * len(MANY_SETTINGS * 5) / 40
    reports = worker.stream_cancellable("closed", tasks.count_all, MANY_SETTINGS * 5)
    next(reports)
    reports.close()
    start = time.monotonic()
    worker.run(tasks.count, {})
    assert time.monotonic() - start < full_seconds / 2


def test_run_on_busy_worker_raises_worker_error_after_max_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Worker(seconds=300.0)
    monkeypatch.setattr(worker_module, "_MAX_WAIT_SECONDS", 0.1)
    with busy._own_turn(), pytest.raises(WorkerError, match="busy with other visitors' work"):
        busy.run(tasks.count, {})
