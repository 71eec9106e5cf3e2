"""The worker process: it answers, it passes errors on, and a death of it takes nothing else down."""

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

MANY = [{"r": r} for r in range(1, 201)]
TRAINABLE = 74_498


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    worker.warm()
    yield worker
    worker.close()
    wait_for(lambda: not multiprocessing.active_children())


def kill_the_process() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
        child.join()


def test_an_answer_and_an_error_come_back(worker: Worker) -> None:
    assert worker.run(tasks.count, {})["trainable"] == TRAINABLE
    with pytest.raises(ConfigError, match="r is 0"):
        worker.run(tasks.count, {"r": 0})
    with pytest.raises(ModelError, match="q_proj"):
        worker.run(tasks.count, {"target_modules": ["q_proj"]})
    assert worker.run(tasks.count_all, [{"r": 0}, {}])[0]["error"].startswith("r is 0")
    assert multiprocessing.active_children(), "the work is done in another process"


def test_a_training_comes_before_the_worker(worker: Worker) -> None:
    worker.run(tasks.count, {})
    (child,) = multiprocessing.active_children()
    assert psutil.Process(child.pid).nice() == min(19, psutil.Process().nice() + 5)


def test_reports_come_while_a_task_runs(worker: Worker) -> None:
    reports = list(worker.stream(tasks.count_all, MANY[:20]))
    assert [report.share for report in reports] == sorted(report.share for report in reports)
    assert isinstance(reports[-1], Report)
    assert reports[-1].share == 1.0
    assert len(reports[-1].result) == 20
    assert len(reports) > 2


def test_cancel_ends_a_task_where_it_stands_and_the_next_one_runs(worker: Worker) -> None:
    heard = 0
    with pytest.raises(Cancelled, match="nothing of it is kept"):
        for _ in worker.stream_cancellable("mine", tasks.count_all, MANY):
            heard += 1
            worker.cancel("somebody else's")
            worker.cancel("mine")
    assert 0 < heard < len(MANY)
    worker.cancel("mine")
    assert len(list(worker.stream_cancellable("mine", tasks.count_all, MANY[:3]))[-1].result) == 3


def test_a_death_in_the_middle_is_one_sentence_and_the_next_call_works(worker: Worker) -> None:
    with pytest.raises(WorkerError, match="want of memory"):
        for number, _ in enumerate(worker.stream(tasks.count_all, MANY)):
            if number == 0:
                kill_the_process()
    assert worker.run(tasks.count, {})["trainable"] == TRAINABLE


@pytest.mark.parametrize("ask", ["run", "stream"])
def test_worker_killed_between_two_calls_is_started_again(ask: str, worker: Worker) -> None:
    worker.run(tasks.count, {})
    pool = worker._pool
    assert pool is not None
    kill_the_process()
    wait_for(lambda: pool._broken)  # else the next call may be the one that notices it
    counts = worker.run(tasks.count, {}) if ask == "run" else list(worker.stream(tasks.count, {}))[-1].result
    assert counts["trainable"] == TRAINABLE


def test_cancel_ends_a_waiting_task_before_it_starts(worker: Worker) -> None:
    running = worker.stream_cancellable("first", tasks.count_all, MANY)
    next(running)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, worker.stream_cancellable("second", tasks.count_all, MANY))
        wait_for(lambda: "second" in worker._tickets_by_name)
        worker.cancel("second")
        worker.cancel("first")
        with pytest.raises(Cancelled):
            list(running)
        with pytest.raises(Cancelled):
            waiting.result(60)
    assert worker.run(tasks.count, {})["trainable"] == TRAINABLE


def test_references_name_functions_of_the_worker() -> None:
    used = set()
    for path in (ROOT / "peft_core/service").glob("*.py"):
        used |= set(re.findall(r"\btasks\.([a-z_]+)", path.read_text(encoding="utf-8"))) - {"py"}
    assert "count" in used and len(used) > 20
    for name in used:
        assert callable(FunctionReference("peft_core.service.tasks", name).resolve()), name


def test_closing_twice_and_asking_again(worker: Worker) -> None:
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
    """A file that is never read to its end: a pipe into which nobody writes."""
    os.mkfifo(tmp_path / "endless.csv")
    return str(tmp_path / "endless.csv")


@pytest.mark.parametrize("ask", ["run", "stream"])
def test_task_past_its_deadline_is_ended_and_the_next_one_runs(
    ask: str, limited: Worker, endless: str
) -> None:
    start = time.monotonic()
    with pytest.raises(WorkerError, match="took over 2 s, the most that this public demo gives it"):
        call = limited.run if ask == "run" else lambda *task: list(limited.stream(*task))
        call(tasks.count_rows, [endless])
    assert time.monotonic() - start > 2
    assert limited.run(tasks.count, {})["trainable"] == TRAINABLE


def test_worker_that_meets_its_deadline_holds_up_no_other(
    worker: Worker, limited: Worker, endless: str
) -> None:
    for ready in (limited, worker):
        ready.run(tasks.count, {})
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(limited.run, tasks.count_rows, [endless])
        worker.run(tasks.count, {})
        assert not hanging.done()
        with pytest.raises(WorkerError, match="took over 2 s"):
            hanging.result()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
def test_task_beyond_its_memory_is_one_sentence_and_the_next_one_runs(tmp_path: Path) -> None:
    limited = Worker(seconds=30.0, most_bytes=100_000_000)
    (tmp_path / "large.csv").write_text("text,label\n" + "a,b\n" * 1_500_000)
    (tmp_path / "small.csv").write_text("text,label\na,b\n")
    with pytest.raises(WorkerError, match="over 0.1 GB of memory|died while it did 'count_rows'|over 30 s"):
        limited.run(tasks.count_rows, [str(tmp_path / "large.csv")])
    assert limited.run(tasks.count_rows, [str(tmp_path / "small.csv")]) == 1
    limited.close()


def test_limit_of_memory_comes_with_a_deadline() -> None:
    with pytest.raises(ValueError, match="may hang"):
        Worker(most_bytes=100_000_000)


def test_process_killed_at_any_moment_leaves_no_lock_held(worker: Worker) -> None:
    """A lock of the numbers that the processes share would be held for ever by a process killed within."""
    assert not hasattr(worker._cancelled, "get_lock") and not hasattr(worker._pid, "get_lock")


def test_task_in_a_thread_that_nobody_waits_for_holds_up_nobody() -> None:
    """Whoever closes a page may close the generator in the thread that answers everyone."""
    going, asked = threading.Event(), []

    def upload(progress: Progress) -> None:
        progress(0.5, "Uploading")
        going.wait(30)
        try:
            progress(1.0, "Pushed")
        except Cancelled:
            asked.append("stopped")

    reports = in_thread(upload)
    assert next(reports).description == "Uploading"
    start = time.monotonic()
    reports.close()
    assert time.monotonic() - start < 5
    going.set()
    wait_for(lambda: asked == ["stopped"])


def test_named_task_whose_page_was_closed_is_cancelled(worker: Worker) -> None:
    start = time.monotonic()
    list(worker.stream(tasks.count_all, MANY[:40]))
    seconds_of_all = (time.monotonic() - start) * len(MANY * 5) / 40
    reports = worker.stream_cancellable("closed", tasks.count_all, MANY * 5)
    next(reports)
    reports.close()
    start = time.monotonic()
    worker.run(tasks.count, {})
    assert time.monotonic() - start < seconds_of_all / 2


def test_task_waits_only_so_long_for_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Worker(seconds=300.0)
    monkeypatch.setattr(worker_module, "_MAX_WAIT_SECONDS", 0.1)
    with busy._own_turn(), pytest.raises(WorkerError, match="busy with other visitors' work"):
        busy.run(tasks.count, {})
