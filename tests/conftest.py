"""Fixtures for all tests: a tiny model, a tiny data set, and runs trained on them by the real command."""

import gc
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import offline
import pytest
import torch
from app_server import Server, serve
from browser import FLAGS, MISSING, count_answers, find_chromium
from exported_runs import each_task, exported, exported_tasks, own_export  # noqa: F401 - fixtures
from family_runs import family_runs  # noqa: F401 - a fixture, for every test file
from page_library import fetch_library
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from processes import python
from small_data import write_small_data
from task_runs import calm_topics, fit, pairs, stars, topics  # noqa: F401 - fixtures, for every test file
from tiny import make_tiny_bert
from unit_rule import is_unit_test

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.merging.merge import merge
from peft_core.runs import Run
from peft_core.training.entry import train

WIDE = {"width": 1440, "height": 900}
Open = Callable[..., Page]

LONGEST = (  # test files that take a minute or more, longest first
    "test_public_batteries", "test_app", "test_app_data", "test_hub", "test_batteries", "test_app_visitors",
    "test_webpage_browser", "test_page_races", "test_visitors", "test_app_taking", "test_app_inference",
    "test_snippets", "test_processes", "test_worker", "test_train", "test_matrix", "test_reproduction",
    "test_launcher", "test_app_trust", "test_onnx_graph", "test_task_pages", "test_onnx", "test_compiling",
    "test_script", "test_best_step", "test_stopping", "test_workbench",
)  # fmt: skip
PATIENCE = 60_000  # milliseconds; two browsers, two servers and possibly other work share two cores
expect.set_options(timeout=PATIENCE)
torch.set_num_threads(1)  # as in the processes that these tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reverse", action="store_true", help="run the tests backwards")


def pytest_configure(config: pytest.Config) -> None:
    hide_bitsandbytes(config)
    config.addinivalue_line("markers", "alone: measures time, so it runs before anything else is started")
    config.addinivalue_line("markers", "unit: starts no process and trains nothing; see unit_rule.py")


def hide_bitsandbytes(config: pytest.Config) -> None:
    """Hide bitsandbytes from processes that tests start, not from test processes; see sitecustomize.py."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "support")
    starts_workers = bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")
    if starts_workers:
        os.environ["BITSANDBYTES"] = "1"
    else:
        os.environ.pop("BITSANDBYTES", None)


def pytest_collection_finish() -> None:
    gc.freeze()  # else each garbage collection of a training would scan all imported objects


def pytest_report_header() -> str:
    return f"Hub: {offline.NOBODY}, where nothing listens; cache: {offline.HOME}"


@pytest.hookimpl(tryfirst=True)  # before pytest reads -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark unit tests; run `alone` tests first, then the longest files, so that no worker ends with one."""
    for item in items:
        if is_unit_test(item):
            item.add_marker("unit")
    if config.getoption("reverse"):
        items.reverse()
    slow = Counter(item.path for item in items if item.get_closest_marker("unit") is None)
    longest = {name: place for place, name in enumerate(LONGEST)}

    def order(item: pytest.Item) -> tuple[bool, bool, int]:
        last = len(LONGEST)
        return (
            item.get_closest_marker("alone") is None,
            slow[item.path] == 0,
            longest.get(item.path.stem, last),
        )

    items.sort(key=order)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with a pooler and without a classification head."""
    return make_tiny_bert(tmp_path_factory.mktemp("models") / "tiny", with_head=False)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv, validation.csv and test.csv, columns text and label (bad or good)."""
    return write_small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def settings(tiny_model: Path, tiny_data: Path) -> dict[str, Any]:
    """Settings with which the tiny model learns the tiny data in a second."""
    return {
        "model_name_or_path": str(tiny_model),
        "dataset_name": str(tiny_data),
        "max_length": 64,
        "num_train_epochs": 6,
        "learning_rate": 0.03,
    }


@pytest.fixture(scope="session")
def finished_run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run trained by `python -m peft_core.train`; read-only."""
    run = runs.create(tmp_path_factory.mktemp("finished"), TrainConfig.from_dict(settings))
    done = python("-m", "peft_core.train", str(run.folder))
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def merged_run(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A merged copy of the finished run; read-only."""
    run = copy_of(finished_run, tmp_path_factory.mktemp("merged"))
    merge(run.folder)
    return run


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the cache of fitted probes."""
    monkeypatch.setattr("peft_core.inference.probe._fitted_probes", {})


@pytest.fixture
def own_run(finished_run: Run, tmp_path: Path) -> Run:
    """A copy of the finished run that a test may change."""
    return copy_of(finished_run, tmp_path / "own")


@pytest.fixture
def train_here(settings: dict[str, Any], tmp_path: Path) -> Callable[..., Run]:
    """A function that trains a run in this process with changed settings and returns it."""

    def trained(**changes: Any) -> Run:
        run = runs.create(tmp_path / "runs", TrainConfig.from_dict({**settings, **changes}))
        train(run.folder)
        return run

    return trained


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A mounted disk whose size in kB is the fixture's parameter."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={request.param}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(
            "a small disk can be mounted by root alone; the test of a file that may not grow stands in"
        )
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def copy_of(run: Run, runs_dir: Path) -> Run:
    """Copy a run without outputs that other tests may have created in it."""
    outputs = shutil.ignore_patterns("probe", "downloads", "predictions")
    return Run(shutil.copytree(run.folder, runs_dir / run.run_id, ignore=outputs))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("app")
    unreachable_hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "hf")}
    with serve(folder / "runs", **unreachable_hub) as running:
        yield running


@pytest.fixture(scope="session")
def library(pytestconfig: pytest.Config) -> Path:
    """The JavaScript library that an exported page uses, as published on npm."""
    return fetch_library(pytestconfig.cache.mkdir("page-library"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = find_chromium()
    assert path is not None, MISSING
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser_context(chromium: Browser) -> BrowserContext:
    """A context shared by all pages of a test file, so that gradio's scripts are loaded and compiled once."""
    context = chromium.new_context()
    count_answers(context)
    return context


def _policy_violations(message: str) -> list[str]:
    return [message] if "Content Security Policy" in message else []


@pytest.fixture
def open_page(server: Server, browser_context: BrowserContext) -> Iterator[Open]:
    """A function that opens the app in a new tab; script errors and policy violations fail the test."""
    opened: list[Page] = []
    errors: list[str] = []

    def opener(query: str = "", viewport: dict[str, int] = WIDE) -> Page:
        page = browser_context.new_page()
        page.set_viewport_size(viewport)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.extend(_policy_violations(message.text)))
        page.goto(f"{server.url}/{query}")
        expect(page.get_by_test_id("cost")).to_be_visible(timeout=3 * PATIENCE)
        opened.append(page)
        return page

    yield opener
    for page in opened:
        page.evaluate("localStorage.clear()")  # resets the theme
        page.close()
    assert not errors
