"""Tests of the page in a real Chromium."""

import os
import signal
import time
import zipfile
from pathlib import Path

import httpx
import pytest
from app_server import Server
from browser import fill, picture_of, wait_for_answers, wait_until_redrawn
from conftest import Open, copy_of
from open_page import OpenPage
from playwright.sync_api import Page, expect
from processes import python, wait_for

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.models.presets import EMBEDDED_SHA256
from peft_core.runs import Run, list_runs
from peft_core.runs.checkpoints import can_continue

NARROW = {"width": 380, "height": 800}


@pytest.fixture
def run(server: Server, finished_run: Run) -> Run:
    """A finished run in the app's runs folder, whichever tests ran before."""
    run = Run(server.runs_dir / finished_run.run_id)
    if not run.folder.is_dir():
        copy_of(finished_run, server.runs_dir / ".staging").folder.rename(run.folder)
    return run


def newest(server: Server) -> Run:
    return list_runs(server.runs_dir)[0]


def press_train(page: Page, server: Server, **fields: str) -> Run:
    """Fill fields, press Train, and wait until the page shows the run."""
    for card in ("2  Data", "4  Training"):
        page.get_by_role("button", name=card).click()
    for name, text in fields.items():
        fill(page, f"#{name} input", text)
        page.press(f"#{name} input", "Tab")
    before = {run.run_id for run in list_runs(server.runs_dir)}
    page.click("#train")
    expect(page.locator("#panel .running")).to_be_visible()
    (run,) = [run for run in list_runs(server.runs_dir) if run.run_id not in before]
    return run


def take_settings(open_page: Open, run: Run) -> Page:
    """Return a page with a finished run's settings in the form; its tiny model and data train in seconds."""
    page = open_page(f"?run={run.run_id}")
    expect(page.get_by_test_id("result")).to_contain_text(run.run_id)
    page.click("#use-settings")
    expect(page.get_by_test_id("cost")).to_contain_text("2,114 of 34,596")
    wait_for_answers(page)
    return page


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def assert_default_run_meets_targets(run: Run, runs_dir: Path) -> None:
    """Check the targets of the default run: accuracy of at least 0.77 within a minute of training."""
    report, parameters = run.result(), run.result()["parameters"]
    assert run.config() == TrainConfig.from_dict({})
    assert run.state().status == "FINISHED"
    assert report["accuracy"] >= 0.77
    assert (report["train_rows"], report["eval_rows"]) == (3000, 1000)
    assert report["base_revision"] == f"sha256:{EMBEDDED_SHA256}"
    assert (parameters["trainable"], parameters["total"]) == (74_498, 22_788_484)
    assert report["baseline"]["accuracy"] < 0.6
    seconds = [report["train_seconds"]]
    while min(seconds) > 60 and len(seconds) < 3:  # shared machines vary in speed, so the fastest run counts
        rerun = runs.create(runs_dir, TrainConfig())
        done = python("-m", "peft_core.train", str(rerun.folder), timeout=400, OMP_NUM_THREADS="2")
        assert done.returncode == 0, done.stderr
        seconds.append(rerun.result()["train_seconds"])
    print(f"default run: accuracy {report['accuracy']:.3f}, training took {seconds} s")
    assert min(seconds) <= 60


@pytest.mark.alone
def test_default_run_reaches_documented_accuracy_and_time(
    server: Server, open_page: Open, tmp_path: Path
) -> None:
    page = open_page()
    expect(page.get_by_test_id("cost")).to_contain_text("74,498 of 22,788,484 · 0.3269 %")
    assert page.locator("#picture svg").is_visible()

    page.click("#train")
    expect(page.get_by_test_id("progress")).to_contain_text("tokens/s", timeout=60_000)
    expect(page.locator("#loss canvas")).to_be_visible()
    early, width = picture_of(page, "#loss canvas"), page.locator(".bar i").get_attribute("style")
    wait_until_redrawn(page, "#loss canvas", early)
    expect(page.locator(".bar i")).not_to_have_attribute("style", width)

    expect(page.get_by_test_id("result")).to_be_visible(timeout=180_000)
    run = newest(server)
    report = run.result()
    assert float(page.get_by_test_id("accuracy").inner_text()) == round(report["accuracy"], 3)
    assert_default_run_meets_targets(run, tmp_path)
    assert page.get_by_test_id("confusion").locator("td").count() == 4

    page.click("#try-it")
    fill(page, "#text textarea", "A gorgeous, witty, seductive movie.")
    page.click("#classify")
    expect(page.locator("#card-1 .answer")).to_have_text("positive", timeout=60_000)


def test_finished_run_is_merged_downloaded_and_predicts(open_page: Open, run: Run, tmp_path: Path) -> None:
    page = open_page(f"?run={run.run_id}")
    page.click("#merge")
    expect(page.get_by_test_id("certificate")).to_contain_text("certificate holds", timeout=90_000)
    for kind, inside in (("adapter", "adapter_model.safetensors"), ("merged", "model.safetensors")):
        with page.expect_download() as download:
            page.click(f"#get-{kind}")
        download.value.save_as(tmp_path / f"{kind}.zip")
        with zipfile.ZipFile(tmp_path / f"{kind}.zip") as archive:
            assert inside in archive.namelist() and archive.testzip() is None

    page.click("#try-it")
    page.click("#classify")
    expect(page.locator("#difference [role=alert]")).to_contain_text("The text is empty")
    fill(page, "#text textarea", "Wonderful, the best pizza, excellent.")
    page.click("#classify")
    expect(page.get_by_test_id("difference")).to_contain_text("difference", timeout=60_000)
    expect(page.locator("#card-0")).to_contain_text("logistic regression on its frozen vectors")
    for card in ("#card-1", "#card-2"):
        expect(page.locator(f"{card} .answer")).to_have_text("good")
    page.locator("#examples button").first.click()
    expect(page.locator("#text textarea")).not_to_have_value("Wonderful, the best pizza, excellent.")

    tab(page, "Compare parameters")
    expect(page.locator("#own-runs")).to_contain_text(run.run_id)


def test_running_run_survives_reload_and_stop_keeps_adapter(
    server: Server, open_page: Open, run: Run
) -> None:
    page = take_settings(open_page, run)
    run = press_train(page, server, num_train_epochs="100", per_device_train_batch_size="1")
    expect(page.get_by_test_id("progress")).to_contain_text("tokens/s", timeout=60_000)
    page.reload()
    expect(page.locator("#panel .running")).to_contain_text(run.run_id)
    second = open_page()
    expect(second.locator("#panel .running")).to_contain_text(run.run_id)

    step = run.state().step
    second.click("#stop")
    expect(page.locator("#panel")).to_contain_text("The adapter of that step is kept", timeout=60_000)
    state = run.state()
    assert state.status == "KILLED" and run.has_adapter and can_continue(run)
    assert (state.step or 0) >= step
    expect(page.locator("#continue")).to_be_visible()
    page.click("#evaluate")
    expect(page.get_by_test_id("result")).to_contain_text("Evaluated without further training")
    assert run.state().status == "KILLED" and run.result()["eval_rows"] == 40
    expect(page.locator("#evaluate")).to_be_hidden()
    expect(page.locator("#continue")).to_be_visible()


def test_killed_training_is_reported_and_continues(server: Server, open_page: Open, run: Run) -> None:
    page = take_settings(open_page, run)
    run = press_train(page, server, num_train_epochs="30")
    wait_for(lambda: can_continue(run), seconds=90)
    os.kill(run.state().pid, signal.SIGKILL)
    expect(page.locator("#panel")).to_contain_text("ended unexpectedly")
    page.click("#continue")
    expect(page.get_by_test_id("result")).to_be_visible(timeout=90_000)
    assert run.state().status == "FINISHED" and run.result()["resumed_from"] > 0


def test_run_opens_by_url(run: Run, open_page: Open) -> None:
    page = open_page(f"?run={run.run_id}")
    expect(page.get_by_test_id("result")).to_contain_text(run.run_id)


def test_page_recovers_after_session_expiry(server: Server, run: Run) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        page = OpenPage(client, run.run_id)
        assert page.tick["queue"] is False, "a look that queues costs the app twice as much"
        assert page.poll()
        assert not page.poll(), "nothing has changed"
        page.session = "begun-anew"
        assert page.poll()


def test_page_without_selected_run_changes_no_tab_state(server: Server, run: Run) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        page = OpenPage(client, run.run_id)
        assert not page.event(page.show, [None])["changed_state_ids"]
        assert page.event(page.show, [run.run_id])["changed_state_ids"]


def test_failed_merge_shows_reason_and_clears_progress(run: Run, open_page: Open) -> None:
    weights = run.adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    page = open_page(f"?run={run.run_id}")
    try:
        weights.write_bytes(whole[:100])
        page.click("#merge")
        expect(page.get_by_text("is damaged: it has 100 bytes").first).to_be_visible()
        expect(page.get_by_text("Loading the base model")).to_have_count(0)
    finally:
        weights.write_bytes(whole)


def test_invalid_setting_shows_one_sentence_and_starts_no_run(server: Server, open_page: Open) -> None:
    page = open_page()
    before = len(list_runs(server.runs_dir))
    page.get_by_role("button", name="3  Method").click()
    fill(page, "#r input", "0")
    page.locator("#r input").press("Tab")
    expect(page.locator("#cost [role=alert]")).to_contain_text("r is 0; it must be from 1 to 2,048.")
    wait_for_answers(page)
    page.click("#train")
    wait_for_answers(page)
    assert len(list_runs(server.runs_dir)) == before


def test_hub_model_without_network_is_refused_at_once(server: Server, open_page: Open) -> None:
    page = open_page()
    page.get_by_label("The article (Hub)").check()
    expect(page.get_by_test_id("cost")).to_contain_text("298,757 of 167,659,018")
    start = time.time()
    page.click("#train")
    expect(page.locator("#refused [role=alert]")).to_contain_text("The Hub cannot be reached", timeout=15_000)
    assert time.time() - start < 15


def test_target_modules_are_those_of_the_model(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="3  Method").click()
    picker = page.locator("#target_modules")
    expect(picker.locator("label")).to_have_count(8)
    expect(picker).to_contain_text("attention.output.dense")
    expect(picker).to_contain_text("MLP in · 6 × (1,536 × 384) · 11,520 per rank")
    expect(picker).to_contain_text("no name matches the MLP out alone")
    picker.locator("label").nth(1).click()
    expect(page.get_by_test_id("cost")).to_contain_text("111,362")
    page.click("#take-attention")
    expect(page.get_by_test_id("cost")).to_contain_text("148,226")
    page.click("#take-usual")
    expect(page.get_by_test_id("cost")).to_contain_text("74,498")
    page.click("#take-all")
    expect(picker.locator("input:checked")).to_have_count(1)
    expect(picker.locator("label.selected")).to_contain_text("all-linear")
    expect(page.get_by_role("button", name="4  Training")).to_contain_text("rate 0.001")


def test_model_choice_sets_modules_and_lists_untrained_parts(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="1  Model").click()
    facts = page.locator("#model-facts")
    expect(facts).to_contain_text("Reads up to 512 tokens. Starts untrained: classifier.")
    page.click("#model_name_or_path input")
    page.get_by_role("option", name="DistilBERT base · 66.4 M · Apache-2.0").click()
    expect(facts).to_contain_text("Starts untrained: pre_classifier, classifier.")
    page.get_by_role("button", name="3  Method").click()
    picker = page.locator("#target_modules label.selected")
    expect(picker).to_have_count(2)
    expect(picker.first).to_contain_text("q_lin")
    expect(page.get_by_test_id("cost")).to_contain_text("739,586 of 67,694,596")


def test_method_choice_shows_its_settings_and_learning_rate(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="3  Method").click()
    expect(page.locator("#r")).to_be_visible()
    expect(page.locator("#picture svg")).to_be_visible()
    page.click("#method input")
    page.get_by_role("option", name="Full fine-tuning").click()
    expect(page.locator("#method-line")).to_contain_text("Every weight is trained.")
    for hidden in ("#r", "#target_modules", "#take-all", "#picture svg"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.get_by_test_id("method-sentence")).to_have_text("Every weight is trained.")
    expect(page.get_by_test_id("cost")).to_contain_text("22,713,986 of 22,713,986 · 100.0000 %")
    expect(page.get_by_role("button", name="4  Training")).to_contain_text("rate 0.0001")
    page.click("#method input")
    page.get_by_role("option", name="LoRA", exact=True).click()
    expect(page.locator("#r")).to_be_visible()
    expect(page.get_by_test_id("cost")).to_contain_text("74,498 of 22,788,484")
    expect(page.get_by_role("button", name="4  Training")).to_contain_text("rate 0.002")


def test_compare_tab_counts_draws_chart_and_exports_csv(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    tab(page, "Compare parameters")
    fill(page, "#compare-labels input", "5")
    page.click("#count")
    expect(page.locator("#counts")).to_contain_text("298,757", timeout=60_000)
    expect(page.locator("#counts")).to_contain_text("167,659,018")
    expect(page.locator("#parts canvas")).to_be_visible()
    before = picture_of(page, "#parts canvas")
    page.get_by_label("Log scale").uncheck()
    wait_until_redrawn(page, "#parts canvas", before)
    with page.expect_download() as download:
        page.click("#get-csv")
    download.value.save_as(tmp_path / "counts.csv")
    text = (tmp_path / "counts.csv").read_text(encoding="utf-8")
    assert "nlptown/bert-base-multilingual-uncased-sentiment,lora,8" in text
    assert "298757" in text


def test_click_on_count_row_loads_its_settings(open_page: Open) -> None:
    page = open_page()
    tab(page, "Compare parameters")
    page.click("#count")
    expect(page.locator("#counts")).to_contain_text("590,594", timeout=60_000)
    expect(page.locator("#parts canvas")).to_be_visible()
    page.locator("#counts").get_by_text("590,594").first.click()
    expect(page.get_by_test_id("cost")).to_contain_text("590,594")


def test_narrow_screen_keeps_train_button_in_reach(open_page: Open) -> None:
    page = open_page(viewport=NARROW)
    page.locator("#train").scroll_into_view_if_needed()
    box = page.locator("#train").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= NARROW["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    wide = (
        "[...document.querySelectorAll('.card')].filter((card) => card.scrollWidth > card.clientWidth).length"
    )
    assert page.evaluate(wide) == 0, "a heading of two lines has its arrow within its card"
    page.click("#train", trial=True)


def test_dark_button_switches_theme(open_page: Open) -> None:
    page = open_page()
    page.click("#dark")
    page.wait_for_url("**__theme=dark**")
    expect(page.locator("body")).to_have_class("dark")


def test_emptied_field_is_refused(server: Server, open_page: Open) -> None:
    page = open_page()
    before = len(list_runs(server.runs_dir))
    page.get_by_role("button", name="4  Training").click()
    fill(page, "#learning_rate input", "")
    page.locator("#learning_rate input").press("Tab")
    page.click("#train")
    expect(page.locator("#cost [role=alert]")).to_contain_text("learning_rate is empty; fill in")
    assert len(list_runs(server.runs_dir)) == before
