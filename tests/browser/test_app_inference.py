"""Tests of the Inference tab in a real Chromium: files, decision rules, other runs and explanations."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pandas as pd
import pytest
from app_server import Server, serve
from browser import fill
from conftest import Open, copy_of
from playwright.sync_api import Page, expect

from peft_core.inference.decision import DECISION_FILE
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.service.workbench import Workbench
from peft_core.ui.inference.text_tab import DEFAULT_EXAMPLES, example_texts


@pytest.fixture(scope="module")
def server(merged_run: Run, topics: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app with two finished runs."""
    folder = tmp_path_factory.mktemp("app") / "runs"
    for run in (merged_run, topics):
        copy_of(run, folder)
    with serve(folder, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(folder.parent / "hf")) as running:
        yield running


def test_example_texts_with_invalid_index_keep_text_boxes(tmp_path: Path) -> None:
    workbench = Workbench.open(tmp_path / "runs")
    assert example_texts(workbench, None, 0) == [DEFAULT_EXAMPLES[0][0], ""]
    for index in (None, -1, len(DEFAULT_EXAMPLES), "0"):
        assert example_texts(workbench, None, index) == [gr.skip(), gr.skip()]


def open_inference_tab(open_page: Open, run: Run, tab: str) -> Page:
    page = open_page(f"?run={run.run_id}")
    page.get_by_role("tab", name="Inference").click()
    expect(page.locator("#picked")).to_contain_text(run.run_id)
    page.get_by_role("tab", name=tab).click()
    return page


def test_file_prediction_returns_rows_and_accuracy(merged_run: Run, open_page: Open, tmp_path: Path) -> None:
    rows = load_evaluation_rows(merged_run)
    labels = ["bad" if label == 0 else "good" for label in rows.labels]
    path = tmp_path / "reviews.csv"
    pd.DataFrame({"nr": range(len(rows)), "text": rows.texts, "label": labels}).to_csv(path, index=False)
    page = open_inference_tab(open_page, merged_run, "File")
    page.locator("#file input[type=file]").set_input_files(str(path))
    expect(page.locator("#file-text input")).to_have_value("text", timeout=60_000)
    expect(page.locator("#file-label input")).to_have_value("label")
    page.get_by_label("Merged").check()
    page.click("#predict-file")
    expect(page.get_by_test_id("file-result")).to_contain_text("40 rows by the merged", timeout=90_000)
    accuracy = merged_run.result()["accuracy"]
    expect(page.get_by_test_id("file-accuracy")).to_have_text(f"{accuracy:.3f}")
    with page.expect_download() as download:
        page.click("#get-file")
    download.value.save_as(tmp_path / "out.csv")
    predictions = pd.read_csv(tmp_path / "out.csv")
    assert predictions["nr"].tolist() == list(range(len(rows)))
    assert (predictions["predicted_label"] == predictions["label"]).mean() == accuracy


def test_cancel_of_long_file_leaves_no_output(
    server: Server, merged_run: Run, open_page: Open, tmp_path: Path
) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text\n" + "the food was good and the service bad\n" * 200_000, encoding="utf-8")
    page = open_inference_tab(open_page, merged_run, "File")
    page.locator("#file input[type=file]").set_input_files(str(path))
    expect(page.locator("#file-text input")).to_have_value("text", timeout=60_000)
    page.click("#predict-file")
    expect(page.locator("#file-shown")).to_contain_text("of 200,000 rows", timeout=90_000)
    page.click("#cancel-file")
    expect(page.locator("#file-shown [role=alert]")).to_contain_text("Cancelled")
    expect(page.locator("#get-file")).to_be_hidden()
    assert not list((server.runs_dir / merged_run.run_id / "predictions").glob("long*"))
    assert not list((server.runs_dir / merged_run.run_id / "predictions").glob(".*"))


def test_file_without_text_column_lists_its_columns(merged_run: Run, open_page: Open, tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text(json.dumps({"n": 1, "m": 2}) + "\n", encoding="utf-8")
    page = open_inference_tab(open_page, merged_run, "File")
    page.locator("#file input[type=file]").set_input_files(str(path))
    expect(page.locator("#file-label input")).to_have_value("none", timeout=60_000)
    page.click("#predict-file")
    expect(page.locator("#file-shown [role=alert]")).to_contain_text("it has 'n', 'm'", timeout=60_000)


def test_decision_rule_is_fitted_saved_and_exported(
    server: Server, topics: Run, open_page: Open, tmp_path: Path
) -> None:
    page = open_inference_tab(open_page, topics, "Calibration")
    expect(page.get_by_test_id("trust")).to_contain_text("60 test rows", timeout=60_000)
    expect(page.locator("#reliability canvas")).to_be_visible()
    page.get_by_label("Fit thresholds").check()
    page.click("#fit")
    expect(page.locator("#temperature input")).not_to_have_value("1", timeout=60_000)
    fill(page, "#abstain input", "0.6")
    page.locator("#abstain input").press("Tab")
    page.click("#save-rule")
    expect(page.locator("#rule-said")).to_contain_text("Saved")
    saved_rule = json.loads((server.runs_dir / topics.run_id / "adapter" / DECISION_FILE).read_text())
    assert saved_rule["abstain_below"] == 0.6 and set(saved_rule["thresholds"]) == {"food", "drink", "room"}
    page.get_by_role("tab", name="Train").click()
    with page.expect_download() as download:
        page.click("#get-adapter")
    download.value.save_as(tmp_path / "adapter.zip")
    with zipfile.ZipFile(tmp_path / "adapter.zip") as archive:
        assert json.loads(archive.read(DECISION_FILE)) == saved_rule
    page.reload()
    page.get_by_role("tab", name="Inference").click()
    page.get_by_role("tab", name="Calibration").click()
    expect(page.locator("#abstain input")).to_have_value("0.6", timeout=60_000)


def test_other_runs_predict_beside_selected_run(merged_run: Run, topics: Run, open_page: Open) -> None:
    page = open_inference_tab(open_page, merged_run, "Text")
    page.click("#others input")
    page.get_by_role("option", name=topics.run_id).click()
    fill(page, "#text textarea", "Wonderful, the best pizza.")
    page.click("#classify")
    expect(page.get_by_test_id("other-runs")).to_contain_text(topics.run_id, timeout=60_000)
    expect(page.locator("#card-2 .answer")).to_have_text("good")
    expect(page.locator("#card-0")).to_contain_text("logistic regression")


def test_explain_tab_scores_words_and_explains_clicked_row(merged_run: Run, open_page: Open) -> None:
    page = open_inference_tab(open_page, merged_run, "Explain")
    expect(page.get_by_test_id("rows-count")).to_contain_text("40 rows", timeout=60_000)
    fill(page, "#why-text textarea", "Wonderful, the best pizza.")
    page.click("#explain")
    drawn = page.get_by_test_id("explained")
    expect(drawn).to_contain_text("Wonderful", timeout=60_000)
    expect(drawn).to_contain_text("Merged")
    assert drawn.locator("span.for, span.against").count() > 0
    page.locator("#rows .virtual-row").nth(2).click()
    text = load_evaluation_rows(merged_run).texts[2]
    expect(page.locator("#why-text textarea")).to_have_value(text)
    expect(drawn).to_contain_text(text.split()[1], timeout=60_000)
