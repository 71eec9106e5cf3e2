"""Tests of two visitors of a public demo in a real browser: visible runs, share links, the queue."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_server import Server, serve
from browser import count_answers, wait_for_answers
from conftest import copy_of
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, Page, expect

from peft_core import runs
from peft_core.access.visitors import TOKEN_HEADER, new_token, sha256_of
from peft_core.config import TrainConfig
from peft_core.runs import Run
from peft_core.runs.ownership import Ownership, write_ownership
from peft_core.service.limits import Limits

# Let an idle page poll every second instead of every ten.
OFTEN = "from peft_core.ui import train; train.IDLE_POLL_SECONDS = 1.0\n"
TOKEN = "() => localStorage.getItem('peft-workbench-visitor')"
OWNERS_BUTTONS = {
    "File": ["#predict-file"],
    "Calibration": ["#save-rule"],
    "Export": ["#make-onnx", "#push", "#take-script"],
}


@pytest.fixture(scope="module")
def public_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("public")
    (folder / "runs").mkdir()
    with serve(folder / "runs", patch=OFTEN, PUBLIC_DEMO="1") as running:
        yield running


class Visit:
    """A separate browser context with the pages that it opens."""

    def __init__(self, chromium: Browser, server: Server) -> None:
        self._context, self._server = chromium.new_context(), server
        count_answers(self._context)
        self.errors: list[str] = []

    def open(self, address: str = "") -> Page:
        page = self._context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address or self._server.url)
        page.locator("#train").wait_for()
        wait_for_answers(page)
        return page

    def close(self) -> None:
        self._context.close()


@pytest.fixture
def anna(chromium: Browser, public_server: Server) -> Iterator[Visit]:
    visit = Visit(chromium, public_server)
    yield visit
    visit.close()


@pytest.fixture
def ben(chromium: Browser, public_server: Server) -> Iterator[Visit]:
    visit = Visit(chromium, public_server)
    yield visit
    visit.close()


def give_run(page: Page, finished_run: Run, runs_dir: Path) -> Run:
    """Copy a finished run for the visitor who has this page open, and select it there."""
    run = copy_of(finished_run, runs_dir)
    write_ownership(run.folder, Ownership(owner=sha256_of(page.evaluate(TOKEN))))
    page.locator("#runs label", has_text=run.run_id).click()
    page.locator("#panel h3", has_text=run.run_id).wait_for()
    return run


def test_visitors_see_own_runs_and_shared_run_until_link_is_revoked(
    anna: Visit, ben: Visit, public_server: Server, finished_run: Run
) -> None:
    hers = anna.open()
    run = give_run(hers, finished_run, public_server.runs_dir)
    expect(hers.locator("#delete-run")).to_be_visible()

    guessed = ben.open(f"{public_server.url}/?run={run.run_id}")
    expect(guessed.locator("#runs label")).to_have_count(0)
    assert run.run_id not in guessed.content()

    hers.click("#share-run")
    field = hers.locator("#share-link").locator("textarea, input")
    address = rf"{re.escape(public_server.url)}/\?run={run.run_id}#key=[0-9a-f]{{64}}"
    expect(field).to_have_value(re.compile(address))
    link = field.input_value()
    his = ben.open(link)
    his.locator("#panel h3", has_text=run.run_id).wait_for()
    for name in ("#merge", "#delete-run", "#share-run", "#continue", "#stop"):
        expect(his.locator(name)).to_be_hidden()
    his.click("#try-it")
    expect(his.locator("#picked")).to_contain_text("This run is not yours: you can read it")
    for tab, buttons in OWNERS_BUTTONS.items():
        his.get_by_role("tab", name=tab).click()
        for button in buttons:
            expect(his.locator(button)).to_be_disabled()
    his.get_by_role("tab", name="Train").click()

    hers.click("#revoke-link")
    his.locator("#panel", has_text="There is no run").wait_for()
    expect(his.locator("#try-it")).to_be_hidden()
    reopened = ben.open(link)
    expect(reopened.locator("#runs label")).to_have_count(0)
    assert anna.errors == ben.errors == []


def test_api_client_owns_runs_by_its_token_header(public_server: Server, finished_run: Run) -> None:
    token = new_token()
    copy = copy_of(finished_run, public_server.runs_dir.parent)
    run = Run(copy.folder.rename(public_server.runs_dir / "of-a-program"))
    write_ownership(run.folder, Ownership(owner=sha256_of(token)))
    owner = Client(public_server.url, verbose=False, headers={TOKEN_HEADER: token})
    assert [run_info["run_id"] for run_info in owner.predict(api_name="/runs")] == ["of-a-program"]
    assert owner.predict("of-a-program", api_name="/status")["may_change"] is True
    for stranger in (
        Client(public_server.url, verbose=False),
        Client(public_server.url, verbose=False, headers={TOKEN_HEADER: new_token()}),
    ):
        assert stranger.predict(api_name="/runs") == []
        for endpoint in ("/status", "/stop", "/merge", "/delete"):
            with pytest.raises(AppError, match="There is no run 'of-a-program'"):
                stranger.predict("of-a-program", api_name=endpoint)
        with pytest.raises(AppError, match="There is no run 'of-a-program'"):
            stranger.predict("of-a-program", "adapter", api_name="/download")
    with pytest.raises(AppError, match="send the header X-Visitor-Token"):
        Client(public_server.url, verbose=False).predict({}, api_name="/train")


@pytest.fixture
def waiting_server(tmp_path: Path) -> Iterator[Server]:
    """A public app that starts no training, so that its queue does not change."""
    never_start = "from peft_core.service.launcher import Launcher; Launcher.advance = lambda self: False"
    (tmp_path / "runs").mkdir()
    with serve(tmp_path / "runs", patch=OFTEN + never_start, PUBLIC_DEMO="1") as running:
        yield running


def test_full_queue_refuses_visitor_and_shows_position(chromium: Browser, waiting_server: Server) -> None:
    anna, ben = Visit(chromium, waiting_server), Visit(chromium, waiting_server)
    for _ in range(Limits().max_waiting - 1):
        runs.create(waiting_server.runs_dir, TrainConfig(), owner=sha256_of(new_token()), forecast_seconds=60)
    hers = anna.open()
    hers.click("#train")
    hers.locator("#panel", has_text="Waiting: 5th in the queue, about 4 minutes").wait_for()
    second_page = anna.open()
    second_page.locator("#runs label").first.wait_for()
    expect(second_page.locator("#train")).to_be_hidden()  # Stop is shown instead

    his = ben.open()
    his.click("#train")
    refused = his.locator("#refused, #cost", has_text="5 runs are waiting")
    refused.wait_for()
    expect(his.locator("#runs label")).to_have_count(0)
    hers.click("#stop")
    hers.locator("#runs label", has_text="stopped").wait_for()
    his.click("#train")
    his.locator("#panel", has_text="Waiting: 5th in the queue").wait_for()
    for visit in (anna, ben):
        assert visit.errors == []
        visit.close()


def test_public_demo_code_has_header_without_visitor_token(anna: Visit) -> None:
    page = anna.open()
    page.click("#show-code")
    code = page.locator("#settings-code .cm-content")
    page.locator("#settings-code-kind").get_by_label("API: Python").check()
    expect(code).to_contain_text('headers={"X-Visitor-Token": "TOKEN"}', timeout=60_000)
    expect(code).not_to_contain_text(page.evaluate(TOKEN))
