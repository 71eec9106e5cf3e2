"""Runs that are deleted: what goes and when, what is refused, and the button with its second question."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_server import Server, serve
from conftest import Open
from playwright.sync_api import expect

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.launcher import Launcher
from peft_core.runs import FAILED, KILLED, Run
from peft_core.workbench import Workbench


def ended_run(runs_dir: Path, status: str = FAILED) -> Run:
    run = runs.create(runs_dir, TrainConfig())
    run.update(status=status)
    return run


def test_delete_removes_one_run_and_all_its_files(tmp_path: Path) -> None:
    run, other = ended_run(tmp_path), ended_run(tmp_path)
    runs.delete(tmp_path, run.run_id)
    assert runs.list_runs(tmp_path) == [other]
    assert [path.name for path in tmp_path.iterdir()] == [other.run_id]


def test_deleted_run_disappears_before_its_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ended_run(tmp_path)
    listed: list[list[Run]] = []
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: listed.append(runs.list_runs(tmp_path)))
    runs.delete(tmp_path, run.run_id)
    assert listed == [[]]


@pytest.mark.parametrize("run_id", ["no-such-run", "..", "../x", ".", "", None])
def test_delete_of_an_unknown_run_is_refused(run_id: object, tmp_path: Path) -> None:
    ended_run(tmp_path)
    with pytest.raises(RunError, match="There is no run"):
        Launcher(tmp_path).delete(run_id)
    assert len(list(tmp_path.iterdir())) == 1


def test_delete_of_a_waiting_run_is_refused(tmp_path: Path) -> None:
    run = runs.create(tmp_path, TrainConfig())
    with pytest.raises(RunError, match="is scheduled; stop it before you delete it"):
        Launcher(tmp_path).delete(run.run_id)
    assert run.folder.is_dir()


def test_damaged_run_can_be_deleted(tmp_path: Path) -> None:
    run = ended_run(tmp_path)
    (run.folder / "status.json").write_bytes(b"\xff{")
    (run.folder / "config.json").unlink()
    Launcher(tmp_path).delete(run.run_id)
    assert runs.list_runs(tmp_path) == []


def test_public_demo_deletes_nothing(tmp_path: Path) -> None:
    run = ended_run(tmp_path)
    with pytest.raises(RunError, match="This public demo keeps its runs"):
        Workbench.open(tmp_path, public=True).delete(run.run_id)
    assert run.folder.is_dir()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("app") / "runs") as running:
        yield running


def test_delete_button_asks_again_and_removes_the_run(server: Server, open_page: Open) -> None:
    run, other = ended_run(server.runs_dir), ended_run(server.runs_dir, KILLED)
    page = open_page(f"?run={run.run_id}")
    page.click("#delete-run")
    page.click("#keep-run")
    expect(page.locator("#confirm-delete")).to_be_hidden()
    assert run.folder.is_dir()
    page.click("#delete-run")
    page.click("#confirm-delete")
    expect(page.locator("#runs")).not_to_contain_text(run.run_id)
    expect(page.locator("#runs")).to_contain_text(other.run_id)
    expect(page.locator("#delete-run")).to_be_hidden()
    expect(page.get_by_text("What Train does")).to_be_visible()
    assert not run.folder.exists()


def test_question_about_one_run_does_not_delete_another(server: Server, open_page: Open) -> None:
    run, other = ended_run(server.runs_dir), ended_run(server.runs_dir)
    page = open_page(f"?run={run.run_id}")
    page.click("#delete-run")
    expect(page.locator("#confirm-delete")).to_be_visible()
    page.locator("#runs label").filter(has_text=other.run_id).click()
    expect(page.locator("#confirm-delete")).to_be_hidden()
    assert run.folder.is_dir() and other.folder.is_dir()
