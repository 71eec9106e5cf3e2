"""Tests of the Export tab in a real Chromium: exports, downloads, code snippets and refusals."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_server import Server, serve
from browser import fill
from conftest import Open, copy_of
from playwright.sync_api import Page, expect

from peft_core.runs import Run


@pytest.fixture(scope="module")
def server(merged_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app with one merged run."""
    folder = tmp_path_factory.mktemp("app") / "runs"
    copy_of(merged_run, folder)
    with serve(folder, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(folder.parent / "hf")) as running:
        yield running


@pytest.fixture
def page(open_page: Open, merged_run: Run) -> Page:
    page = open_page(f"?run={merged_run.run_id}")
    page.get_by_role("tab", name="Inference").click()
    page.get_by_role("tab", name="Export").click()
    return page


def download_names(page: Page, button: str, path: Path) -> set[str]:
    """Download the zip behind a button and return the names of its files."""
    with page.expect_download() as download:
        page.click(button)
    download.value.save_as(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def test_onnx_and_page_exports_are_reported_before_download(page: Page, tmp_path: Path) -> None:
    expect(page.locator("#take-onnx")).to_be_disabled()
    fill(page, "#max-drop input", "100")
    page.click("#make-onnx")
    expect(page.get_by_test_id("onnx-report")).to_contain_text("ONNX, int8", timeout=120_000)
    names = download_names(page, "#take-onnx", tmp_path / "onnx.zip")
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "tokenizer.json"} < names
    page.get_by_role("button", name="Web page").click()
    page.click("#make-page")
    expect(page.get_by_test_id("page-report")).to_contain_text("in int8", timeout=120_000)
    assert {"index.html", "page.json"} < download_names(page, "#take-page", tmp_path / "page.zip")


def test_embeddings_are_exported_and_searched(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Embeddings").click()
    page.click("#make-embeddings")
    expect(page.get_by_test_id("embeddings-report")).to_contain_text("40 test rows", timeout=120_000)
    assert {"model.safetensors", "modules.json"} < download_names(
        page, "#take-embeddings", tmp_path / "e.zip"
    )
    fill(page, "#neighbours-query input, #neighbours-query textarea", "The pizza was great.")
    page.click("#neighbours-go")
    neighbours = page.get_by_test_id("neighbours")
    expect(neighbours.locator("ol")).to_have_count(2, timeout=60_000)
    expect(neighbours.locator("li")).to_have_count(20)


def test_code_snippets_can_be_copied(page: Page, merged_run: Run, tmp_path: Path) -> None:
    code = page.locator("#code .cm-content")
    expect(code).to_contain_text("from peft import", timeout=60_000)
    page.locator("#code-kind").get_by_label("API: curl").check()
    expect(code).to_contain_text(merged_run.run_id, timeout=60_000)
    expect(code).to_contain_text("/call/predict")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#code").get_by_role("button", name="Copy").click()
    page.wait_for_function(
        "() => navigator.clipboard.readText().then((text) => text.includes('/call/predict'))"
    )
    assert merged_run.run_id in page.evaluate("() => navigator.clipboard.readText()")
    assert "train.py" in download_names(page, "#take-script", tmp_path / "script.zip")


def test_push_without_token_or_network_shows_one_sentence(page: Page) -> None:
    fill(page, "#push-name input, #push-name textarea", "alice/reviews")
    page.click("#push")
    alert = page.locator("#pushed [role=alert]")
    expect(alert).to_contain_text("The Hub token is empty")
    fill(page, "#push-token input", "hf_NobodyKnowsThisOne")
    page.click("#push")
    expect(alert).to_contain_text("cannot be reached")


def test_settings_code_is_shown_before_training(open_page: Open) -> None:
    page = open_page()
    page.click("#show-code")
    code = page.locator("#settings-code .cm-content")
    expect(code).to_contain_text("SEED = 42")
    page.get_by_role("button", name="4  Training").click()
    fill(page, "#seed input", "7")
    page.locator("#seed input").press("Tab")
    expect(code).to_be_hidden()  # it would show the previous settings
    page.click("#show-code")
    expect(code).to_contain_text("SEED = 7")
    page.locator("#settings-code-kind").get_by_label("API: MCP").check()
    expect(code).to_contain_text('"name": "train"', timeout=60_000)
    expect(code).to_contain_text('"seed": 7')
