"""Late answers: a delayed handler overwrites nothing that was answered or typed meanwhile."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_server import Server, serve
from browser import fill, picture_of, wait_for_answers, wait_until_redrawn
from conftest import Open, copy_of
from playwright.sync_api import expect
from test_app_inference import open_inference_tab

from peft_core.inference.decision import DECISION_FILE
from peft_core.runs import Run

# In the app: a function returns only when the folder has no file of its name.
DELAY_FUNCTIONS = """
import os, time
from peft_core.ui.inference import text_tab
from peft_core.service.workbench import Workbench
from peft_core.service.worker import Worker

def delay(owner, name):
    function = getattr(owner, name)
    def delayed(*args, **kwargs):
        answer = function(*args, **kwargs)
        while os.path.exists(os.path.join(os.environ["DELAYED"], name)):
            time.sleep(0.02)
        return answer
    setattr(owner, name, delayed)

delay(text_tab, "_examples")
for name in ("evaluate_decision_rule", "compare", "review", "inspect"):
    delay(Workbench, name)
delay(Worker, "stream")
run = Worker.run
class Models:
    describe_model = staticmethod(run)
delay(Models, "describe_model")
Worker.run = lambda self, task, *rest: (Models.describe_model if task.name == "describe_model" else run)(
    self, task, *rest)
"""
GOOD, BAD = "Wonderful, the best pizza.", "Awful, the worst and rude."


@pytest.fixture(scope="module")
def delayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a file for each function that is delayed."""
    return tmp_path_factory.mktemp("delayed")


@pytest.fixture(scope="module")
def server(
    merged_run: Run, topics: Run, delayed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The app over two runs, with functions that can be delayed."""
    folder = tmp_path_factory.mktemp("app") / "runs"
    for run in (merged_run, topics):
        copy_of(run, folder)
    changes = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder.parent / "hf")}
    with serve(folder, patch=DELAY_FUNCTIONS, DELAYED=str(delayed), **changes) as running:
        yield running


@pytest.fixture(autouse=True)
def release_all(delayed: Path) -> Iterator[None]:
    yield
    for path in delayed.iterdir():
        path.unlink()


def test_save_confirmation_survives_a_late_evaluation(topics: Run, open_page: Open, delayed: Path) -> None:
    page = open_inference_tab(open_page, topics, "Calibration")
    table = page.get_by_test_id("trust")
    expect(table).to_contain_text("60 test rows", timeout=60_000)
    first_table = table.inner_html()
    (delayed / "evaluate_decision_rule").touch()
    fill(page, "#abstain input", "0.6")
    page.locator("#abstain input").press("Tab")
    page.click("#save-rule")
    expect(page.locator("#rule-said")).to_contain_text("Saved")
    (delayed / "evaluate_decision_rule").unlink()
    has_changed = "(before) => document.querySelector('[data-testid=trust]').outerHTML !== before"
    page.wait_for_function(has_changed, arg=first_table)
    wait_for_answers(page)
    expect(page.locator("#rule-said")).to_contain_text("Saved")


def test_edit_clears_the_save_confirmation_before_its_evaluation(
    topics: Run, open_page: Open, delayed: Path
) -> None:
    page = open_inference_tab(open_page, topics, "Calibration")
    expect(page.get_by_test_id("trust")).to_contain_text("60 test rows", timeout=60_000)
    page.click("#save-rule")
    expect(page.locator("#rule-said")).to_contain_text("Saved")
    (delayed / "evaluate_decision_rule").touch()
    fill(page, "#abstain input", "0.3")
    expect(page.locator("#rule-said")).not_to_contain_text("Saved")


def test_edited_rule_survives_a_visit_to_another_tab(server: Server, topics: Run, open_page: Open) -> None:
    page = open_inference_tab(open_page, topics, "Calibration")
    expect(page.get_by_test_id("trust")).to_contain_text("60 test rows", timeout=60_000)
    fill(page, "#abstain input", "0.45")
    page.get_by_role("tab", name="Text").click()
    wait_for_answers(page)
    with page.expect_request("**/queue/join*"):
        page.get_by_role("tab", name="Calibration").click()
    wait_for_answers(page)
    expect(page.locator("#abstain input")).to_have_value("0.45")
    path = server.runs_dir / topics.run_id / "adapter" / DECISION_FILE
    assert not path.exists() or json.loads(path.read_text())["abstain_below"] != 0.45


def test_refusal_survives_a_late_recipe(open_page: Open, delayed: Path) -> None:
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    fill(page, "#dataset_name input", "/nowhere")
    page.locator("#dataset_name input").press("Enter")
    expect(page.locator("#data-facts [role=alert]")).to_contain_text("/nowhere")
    (delayed / "describe_model").touch()
    page.get_by_label("The article (Hub)").check()
    page.click("#train")
    expect(page.locator("#refused [role=alert]")).to_contain_text("/nowhere")
    (delayed / "describe_model").unlink()
    expect(page.get_by_role("button", name="2  Data")).to_contain_text("Yelp")
    wait_for_answers(page)
    expect(page.locator("#refused [role=alert]")).to_contain_text("/nowhere")


def test_prediction_survives_late_examples(merged_run: Run, open_page: Open, delayed: Path) -> None:
    (delayed / "_examples").touch()
    page = open_inference_tab(open_page, merged_run, "Text")
    fill(page, "#text textarea", GOOD)
    page.click("#classify")
    expect(page.locator("#card-1 .answer")).to_have_text("good", timeout=60_000)
    (delayed / "_examples").unlink()
    expect(page.locator("#examples")).not_to_contain_text("A gorgeous, witty")
    wait_for_answers(page)
    expect(page.locator("#card-1 .answer")).to_have_text("good")


def test_example_clicked_during_a_prediction_is_answered(
    merged_run: Run, open_page: Open, delayed: Path
) -> None:
    page = open_inference_tab(open_page, merged_run, "Text")
    expect(page.locator("#examples")).not_to_contain_text("A gorgeous, witty")
    examples = page.locator("#examples button")
    fill(page, "#text textarea", GOOD)
    page.click("#classify")
    expect(page.locator("#card-1 .answer")).to_have_text("good", timeout=60_000)
    texts = examples.all_inner_texts()
    bad = next(i for i, text in enumerate(texts) if any(word in text for word in ("bad", "awful", "rude")))
    (delayed / "compare").touch()
    page.click("#classify")
    examples.nth(bad).click()
    expect(page.locator("#text textarea")).to_have_value(texts[bad])
    (delayed / "compare").unlink()
    wait_for_answers(page)
    expect(page.locator("#card-1 .answer")).to_have_text("bad")


def test_answer_about_one_run_does_not_appear_under_another(
    merged_run: Run, topics: Run, open_page: Open, delayed: Path
) -> None:
    page = open_inference_tab(open_page, merged_run, "Text")
    (delayed / "compare").touch()
    fill(page, "#text textarea", GOOD)
    with page.expect_request("**/queue/join*"):
        page.click("#classify")
    page.locator("#runs label").filter(has_text=topics.run_id).click()
    expect(page.locator("#picked")).to_contain_text(topics.run_id)
    (delayed / "compare").unlink()
    wait_for_answers(page)
    expect(page.locator("#card-1 .answer")).to_have_count(0)
    page.click("#classify")
    expect(page.locator("#card-1")).to_contain_text("food", timeout=60_000)


def test_typed_text_survives_late_test_rows(merged_run: Run, open_page: Open, delayed: Path) -> None:
    (delayed / "review").touch()
    page = open_inference_tab(open_page, merged_run, "Explain")
    fill(page, "#why-text textarea", GOOD)
    (delayed / "review").unlink()
    expect(page.get_by_test_id("rows-count")).to_contain_text("40 rows", timeout=60_000)
    wait_for_answers(page)
    expect(page.locator("#why-text textarea")).to_have_value(GOOD)


def test_chart_follows_the_scale_chosen_during_a_count(open_page: Open, delayed: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Compare parameters").click()
    (delayed / "stream").touch()
    page.click("#count")
    page.get_by_label("Log scale").uncheck()
    (delayed / "stream").unlink()
    expect(page.locator("#parts canvas")).to_be_visible(timeout=60_000)
    wait_for_answers(page)
    linear = picture_of(page, "#parts canvas")
    page.get_by_label("Log scale").check()
    wait_until_redrawn(page, "#parts canvas", linear)
    logarithmic = picture_of(page, "#parts canvas")
    page.get_by_label("Log scale").uncheck()
    wait_until_redrawn(page, "#parts canvas", logarithmic)
    assert picture_of(page, "#parts canvas") == linear


def test_data_set_entered_while_the_card_opens_is_inspected(open_page: Open, delayed: Path) -> None:
    page = open_page()
    (delayed / "inspect").touch()
    page.get_by_role("button", name="2  Data").click()
    fill(page, "#dataset_name input", "/nowhere")
    page.locator("#dataset_name input").press("Enter")
    (delayed / "inspect").unlink()
    expect(page.locator("#data-facts [role=alert]")).to_contain_text("/nowhere")
    wait_for_answers(page)
    expect(page.locator("#data-facts [role=alert]")).to_contain_text("/nowhere")
