"""Deletion of runs: trash, purge and restore, refused deletions, and the buttons."""

import errno
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_server import Server, serve
from conftest import Open
from filelock import FileLock
from playwright.sync_api import expect

from batteries.children import KILLED as DIED
from batteries.children import outcome, run_child
from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.runs import FAILED, KILLED, Run, trash
from peft_core.runs.trash import TRASH
from peft_core.service.launcher import Launcher


def ended_run(runs_dir: Path, status: str = FAILED) -> Run:
    run = runs.create(runs_dir, TrainConfig())
    run.update(status=status)
    return run


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raise_disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_delete_moves_run_with_all_files_to_trash(tmp_path: Path) -> None:
    run, other = ended_run(tmp_path), ended_run(tmp_path)
    before = content_of(run.folder)
    Launcher(tmp_path).delete(run.run_id)
    assert runs.list_runs(tmp_path) == [other]
    assert names_in(tmp_path) == sorted([TRASH, other.run_id])
    assert before.items() <= content_of(tmp_path / TRASH / run.run_id).items()


def test_restore_of_deleted_run_restores_files_and_state(tmp_path: Path) -> None:
    run, launcher = ended_run(tmp_path, KILLED), Launcher(tmp_path)
    (run.folder / "train.log").write_text("a line")
    before, state = content_of(run.folder), run.state()
    launcher.delete(run.run_id)
    assert launcher.restore(run.run_id).state() == state
    assert content_of(run.folder) == before
    assert runs.list_runs(tmp_path) == [run] and names_in(tmp_path / TRASH) == []


@pytest.mark.parametrize("run_id", ["no-such-run", "..", "../x", ".", "", None])
def test_restore_of_unknown_run_raises_run_error(run_id: object, tmp_path: Path) -> None:
    runs.delete(tmp_path, ended_run(tmp_path).run_id)
    with pytest.raises(RunError, match="cannot be restored: deleted runs are kept for an hour"):
        Launcher(tmp_path).restore(run_id)
    assert names_in(tmp_path) == [TRASH]


def test_restore_with_existing_run_id_raises_run_error(tmp_path: Path) -> None:
    run = ended_run(tmp_path)
    runs.delete(tmp_path, run.run_id)
    shutil.copytree(tmp_path / TRASH / run.run_id, run.folder)
    with pytest.raises(RunError, match=f"There is a run '{run.run_id}' already"):
        runs.restore(tmp_path, run.run_id)
    assert names_in(tmp_path / TRASH) == [run.run_id]


def test_delete_of_second_run_with_same_id_keeps_later_files(tmp_path: Path) -> None:
    run = ended_run(tmp_path)
    runs.delete(tmp_path, run.run_id)
    shutil.copytree(tmp_path / TRASH / run.run_id, run.folder)
    (run.folder / "train.log").write_text("later")
    runs.delete(tmp_path, run.run_id)
    assert (tmp_path / TRASH / run.run_id / "train.log").read_text() == "later"


def test_purge_trash_removes_runs_deleted_before_age(tmp_path: Path) -> None:
    early, late = ended_run(tmp_path), ended_run(tmp_path)
    for run in (early, late):
        os.utime(run.folder, (1.0, 1.0))  # the age of the run itself does not count
        runs.delete(tmp_path, run.run_id)
    hour_ago = time.time() - 3600
    os.utime(tmp_path / TRASH / early.run_id, (hour_ago, hour_ago))
    assert [path.name for path, _ in runs.list_trash(tmp_path)] == [early.run_id, late.run_id]
    assert runs.purge_trash(tmp_path, 1800) == 1
    assert names_in(tmp_path / TRASH) == [late.run_id]
    assert runs.purge_trash(tmp_path) == 1
    with pytest.raises(RunError, match="cannot be restored"):
        runs.restore(tmp_path, late.run_id)


def test_purge_trash_renames_run_before_removing_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended_run(tmp_path)
    runs.delete(tmp_path, run.run_id)
    names: list[list[str]] = []
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: names.append(names_in(tmp_path / TRASH)))
    runs.purge_trash(tmp_path)
    ((staging,),) = names
    assert staging.startswith(".staging-")


@pytest.mark.parametrize("act", [runs.sweep, lambda folder: runs.delete(folder, ended_run(folder).run_id)])
def test_runs_deleted_an_hour_ago_are_purged(act: Callable[[Path], Any], tmp_path: Path) -> None:
    old, new = ended_run(tmp_path), ended_run(tmp_path)
    for run in (old, new):
        runs.delete(tmp_path, run.run_id)
    os.utime(tmp_path / TRASH / old.run_id, (1.0, 1.0))
    act(tmp_path)
    assert old.run_id not in names_in(tmp_path / TRASH) and new.run_id in names_in(tmp_path / TRASH)


def test_sweep_removes_staging_of_dead_purge(tmp_path: Path) -> None:
    staging = tmp_path / TRASH / ".staging-999999-another-boot-1-0123abcd-x"
    staging.mkdir(parents=True)
    assert runs.sweep(tmp_path) == 1
    assert not staging.exists()


def test_sweep_removes_staging_of_dead_visitor_upload(tmp_path: Path) -> None:
    staging = tmp_path / ".uploads" / ("a" * 64) / ".staging-999999-another-boot-1-0123abcd-x"
    staging.mkdir(parents=True)
    assert runs.sweep(tmp_path) == 1
    assert not staging.exists()


def test_purge_trash_after_disk_error_retries_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, other = ended_run(tmp_path), ended_run(tmp_path)
    for run in (stuck, other):
        runs.delete(tmp_path, run.run_id)
    remove_folder = trash.remove_folder

    def fail_for_stuck_run(folder: Path) -> None:
        if folder.name == stuck.run_id:
            raise OSError(errno.EIO, "Input/output error")
        remove_folder(folder)

    with monkeypatch.context() as patched:
        patched.setattr(trash, "remove_folder", fail_for_stuck_run)
        assert runs.purge_trash(tmp_path) == 1
    assert names_in(tmp_path / TRASH) == [stuck.run_id]
    assert runs.purge_trash(tmp_path) == 1


@pytest.mark.parametrize("name", ["delete", "restore"])
def test_delete_and_restore_wait_for_lock(name: str, tmp_path: Path) -> None:
    run, launcher = ended_run(tmp_path), Launcher(tmp_path)
    if name == "restore":
        launcher.delete(run.run_id)
    before = run.folder.exists()
    thread = threading.Thread(target=getattr(launcher, name), args=(run.run_id,))
    with launcher.lock:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and run.folder.exists() == before
    thread.join(20)
    assert run.folder.exists() != before


@pytest.mark.parametrize(("name", "failing"), [("make_folder", 1), ("fsync", 1), ("fsync", 2), ("fsync", 3)])
def test_delete_without_room_for_trash_removes_permanently(
    name: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, earlier = ended_run(tmp_path), ended_run(tmp_path)
    runs.delete(tmp_path, earlier.run_id)
    calls: list[Any] = []
    original = getattr(trash, name)

    def full_once(*arguments: Any) -> Any:
        calls.append(arguments)
        return raise_disk_full() if len(calls) == failing else original(*arguments)

    monkeypatch.setattr(trash, name, full_once)
    runs.delete(tmp_path, run.run_id)
    assert names_in(tmp_path) == [TRASH] and names_in(tmp_path / TRASH) == []


def test_delete_without_room_for_rename_removes_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended_run(tmp_path)
    monkeypatch.setattr(Path, "rename", raise_disk_full)
    monkeypatch.setattr(FileLock, "acquire", raise_disk_full)  # which creates a file
    runs.delete(tmp_path, run.run_id)
    assert not run.folder.exists()


def test_delete_on_nearly_full_disk_empties_trash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ended_run(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10))
    runs.delete(tmp_path, run.run_id)
    assert names_in(tmp_path / TRASH) == []


def act_until_killed(act: Callable[[Path, str], Any], run: Run, step: int) -> str:
    """Return the outcome of a child that deletes or restores a run and is killed just before a step."""

    def task(report: Callable[..., None]) -> None:
        steps = itertools.count()
        for owner, name in ((trash, "make_folder"), (trash, "fsync"), (Path, "rename"), (os, "utime")):
            setattr(owner, name, killed_at(getattr(owner, name), steps, step))
        act(run.folder.parent, run.run_id)

    return outcome(run_child(task))


def killed_at(original: Callable[..., Any], steps: Iterator[int], last: int) -> Callable[..., Any]:
    def step(*arguments: Any, **options: Any) -> Any:
        if next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    return step


@pytest.mark.parametrize(("act", "steps"), [(runs.delete, 7), (runs.restore, 3)])
def test_kill_between_steps_leaves_run_complete_in_one_place(
    act: Callable[[Path, str], Any], steps: int, tmp_path: Path
) -> None:
    for step in range(steps + 1):
        run = ended_run(tmp_path)
        before = content_of(run.folder)
        if act is runs.restore:
            runs.delete(tmp_path, run.run_id)
        ended = act_until_killed(act, run, step)
        assert ended == (DIED if step < steps else ""), step
        places = [run.folder, tmp_path / TRASH / run.run_id]
        assert [content_of(place) for place in places if place.exists()] == [before], step
        runs.sweep(tmp_path)
        if run.folder.exists():
            runs.delete(tmp_path, run.run_id)
        assert runs.restore(tmp_path, run.run_id).state().status == FAILED
        runs.remove(tmp_path, run.run_id)


@pytest.mark.parametrize("run_id", ["no-such-run", "..", "../x", ".", "", None])
def test_delete_of_unknown_run_raises_run_error(run_id: object, tmp_path: Path) -> None:
    ended_run(tmp_path)
    with pytest.raises(RunError, match="There is no run"):
        Launcher(tmp_path).delete(run_id)
    assert len(list(tmp_path.iterdir())) == 1


def test_delete_of_scheduled_run_raises_run_error(tmp_path: Path) -> None:
    run = runs.create(tmp_path, TrainConfig())
    with pytest.raises(RunError, match="is scheduled; stop it before you delete it"):
        Launcher(tmp_path).delete(run.run_id)
    assert run.folder.is_dir()


def test_delete_of_damaged_run_succeeds(tmp_path: Path) -> None:
    run = ended_run(tmp_path)
    (run.folder / "status.json").write_bytes(b"\xff{")
    (run.folder / "config.json").unlink()
    Launcher(tmp_path).delete(run.run_id)
    assert runs.list_runs(tmp_path) == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("app") / "runs") as running:
        yield running


def test_delete_button_removes_run_and_undo_restores_it(server: Server, open_page: Open) -> None:
    run, other = ended_run(server.runs_dir), ended_run(server.runs_dir, KILLED)
    page = open_page(f"?run={run.run_id}")
    page.click("#delete-run")
    expect(page.locator("#runs")).not_to_contain_text(run.run_id)
    expect(page.locator("#runs")).to_contain_text(other.run_id)
    expect(page.locator("#delete-run")).to_be_hidden()
    expect(page.get_by_text("What Train does")).to_be_visible()
    assert not run.folder.exists()
    page.get_by_role("button", name=f"Undo: bring back {run.run_id}").click()
    expect(page.locator("#runs label").filter(has_text=run.run_id)).to_be_visible()
    expect(page.locator("#delete-run")).to_be_visible()
    expect(page.locator("#undo-delete")).to_be_hidden()
    assert run.folder.is_dir()


def test_undo_button_is_hidden_for_another_run(server: Server, open_page: Open) -> None:
    run, other = ended_run(server.runs_dir), ended_run(server.runs_dir)
    page = open_page(f"?run={run.run_id}")
    page.click("#delete-run")
    expect(page.locator("#undo-delete")).to_be_visible()
    page.locator("#runs label").filter(has_text=other.run_id).click()
    expect(page.locator("#undo-delete")).to_be_hidden()
    assert other.folder.is_dir()
