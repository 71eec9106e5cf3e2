"""The page of multi-label, regression and pair runs, in a real Chromium."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_server import Server, serve
from browser import FLAGS, MISSING, fill, find_chromium, picture_of, wait_until_redrawn
from conftest import copy_of
from gradio_client import Client
from playwright.sync_api import Page, expect, sync_playwright

from peft_core.merging.merge import merge
from peft_core.runs import Run


@pytest.fixture(scope="module")
def server(
    topics: Run, stars: Run, pairs: Run, finished_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pages") / "runs"
    for run in (topics, stars, pairs, finished_run):
        merge(copy_of(run, folder).folder)
    with serve(folder) as running:
        yield running


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    path = find_chromium()
    assert path is not None, MISSING
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert not errors


def open_run(page: Page, server: Server, run: Run) -> None:
    page.goto(f"{server.url}/?run={run.run_id}")
    expect(page.get_by_test_id("result")).to_contain_text(run.run_id, timeout=60_000)


def predict(page: Page, text: str) -> None:
    page.click("#try-it")
    fill(page, "#text textarea", text)
    page.click("#classify")
    expect(page.get_by_test_id("difference")).to_be_visible(timeout=60_000)


def test_page_of_multi_label_run_shows_its_metrics_and_labels(
    page: Page, server: Server, topics: Run
) -> None:
    open_run(page, server, topics)
    metrics = topics.result()
    expect(page.get_by_test_id("micro_f1")).to_have_text(f"{metrics['micro_f1']:.3f}")
    expect(page.get_by_test_id("by-label").locator("tr")).to_have_count(4)
    expect(page.locator("#metric canvas")).to_be_visible()
    predict(page, "We had awful and rude and worst and good and nice and tasty.")
    expect(page.locator("#card-1 .answer")).to_have_text("food, drink")
    expect(page.locator("#card-2 .answer")).to_have_text("food, drink")
    expect(page.locator("#card-0")).to_contain_text("most frequent set of labels")


def test_page_of_regression_run_shows_its_metrics_and_values(page: Page, server: Server, stars: Run) -> None:
    open_run(page, server, stars)
    metrics = stars.result()
    expect(page.get_by_test_id("spearman")).to_have_text(f"{metrics['spearman']:.3f}")
    expect(page.get_by_test_id("mae")).to_have_text(f"{metrics['mae']:.3f}")
    expect(page.get_by_test_id("scatter").locator("circle")).to_have_count(60)
    predict(page, "The food was amazing, perfect and wonderful.")
    number = page.locator("#card-1 .answer").inner_text()
    assert re.fullmatch(r"\d\.\d+", number) and float(number) > 3.8
    expect(page.locator("#card-1 .label")).to_have_text("15")  # the scale, from 1 to 5
    expect(page.get_by_test_id("difference")).not_to_contain_text("logit")


def test_page_shows_second_text_field_only_for_pair_runs(
    page: Page, server: Server, pairs: Run, stars: Run
) -> None:
    open_run(page, server, stars)
    page.click("#try-it")
    expect(page.locator("#text")).to_be_visible()
    expect(page.locator("#text-pair")).not_to_be_visible()

    open_run(page, server, pairs)
    page.click("#try-it")
    fill(page, "#text textarea", "How was the food?")
    page.click("#classify")
    expect(page.locator("#difference [role=alert]")).to_contain_text("reads pairs")
    for second, answer in (("It was terrible.", "bad"), ("It was amazing.", "good")):
        fill(page, "#text-pair textarea", second)
        page.click("#classify")
        expect(page.locator("#card-1 .answer")).to_have_text(answer)
    page.locator("#examples button").first.click()
    expect(page.locator("#text-pair textarea")).not_to_have_value("It was amazing.")
    expect(page.locator("#text-pair textarea")).not_to_have_value("")


def test_compare_tab_plots_one_metric_of_each_problem_type(page: Page, server: Server, stars: Run) -> None:
    open_run(page, server, stars)
    page.get_by_role("tab", name="Compare parameters").click()
    metrics = page.locator("#own-metric label")
    expect(metrics).to_have_count(3)
    expect(page.locator("#own-runs")).to_contain_text("Spearman")
    expect(page.locator("#own-chart canvas")).to_be_visible()
    before = picture_of(page, "#own-chart canvas")
    chosen = page.locator("#own-metric input:checked").input_value()
    page.locator(f"#own-metric input:not([value='{chosen}'])").first.check()
    wait_until_redrawn(page, "#own-chart canvas", before)


def test_prediction_cards_stack_on_narrow_screen(page: Page, server: Server, topics: Run) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    try:
        open_run(page, server, topics)
        predict(page, "We had awful and rude and worst.")
        boxes = [page.locator(f"#card-{i}").bounding_box() for i in range(3)]
        assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
        assert all(box["width"] > 250 for box in boxes)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
    finally:
        page.set_viewport_size({"width": 1440, "height": 900})


def test_predict_endpoint_answers_for_every_problem_type(
    server: Server, topics: Run, stars: Run, pairs: Run, tmp_path: Path
) -> None:
    client = Client(server.url, verbose=False)
    text = "We had awful and rude and worst and good and nice and tasty."
    multi_label = client.predict(text, topics.run_id, "adapter", api_name="/predict")
    assert multi_label["labels"] == ["food", "drink"] and multi_label["label"] == "food, drink"
    regression = client.predict("The food was terrible and awful.", stars.run_id, api_name="/predict")
    assert regression["value"] < 2.5 and regression["scores"] == {}
    pair = client.predict(
        "How was the food?", pairs.run_id, "merged", "It was terrible.", api_name="/predict"
    )
    assert pair["label"] == "bad" and set(pair["scores"]) == {"bad", "good"}
    status = client.predict(stars.run_id, api_name="/status")
    assert status["problem_type"] == status["result"]["problem_type"] == "regression"
