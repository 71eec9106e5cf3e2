"""Tests of an uploaded file, from upload to a merged model, in a real Chromium."""

import json
import random
from pathlib import Path

import openpyxl
import pytest
from app_server import Server
from browser import fill, wait_for_answers
from conftest import Open
from playwright.sync_api import Page, expect
from tiny import make_tiny_bert

from peft_core.runs import list_runs

CASES = Path(__file__).parents[1] / "cases"
TONES = {
    "sehr gut": ["großartig", "wunderbar", "hervorragend", "excellent", "wonderful"],
    "gut": ["gut", "nett", "schön", "good", "nice"],
    "mittelmäßig": ["mäßig", "durchschnittlich", "okay", "average", "fair"],
    "schlecht": ["schlecht", "schwach", "öde", "bad", "poor"],
    "sehr schlecht": ["schrecklich", "übel", "grauenhaft", "terrible", "awful"],
}
THINGS = ["Frühstück", "Zimmer", "Personal", "Menü", "Gebäude", "Straße", "Küche", "Tür", "Bett", "Wäsche"]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A Latin-1 file with semicolons, commas in the texts, and five labels that are words."""
    rng, rows = random.Random(3), {}
    while len(rows) < 450:
        label = list(TONES)[len(rows) % len(TONES)]
        first, second = rng.sample(THINGS, 2)
        words = rng.sample(TONES[label], 2)
        rows[f"{first} war {words[0]}, {second} {words[1]} ({rng.randint(1, 99)})"] = label
    path = tmp_path / "Hotel Bewertungen.csv"
    lines = ["Meinung;Urteil", *(f"{text};{label}" for text, label in rows.items())]
    path.write_text("\r\n".join(lines), encoding="latin-1")
    return path


def test_uploaded_file_is_trained_and_merged(
    server: Server,
    open_page: Open,
    reviews: Path,
) -> None:
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    page.locator("#upload input[type=file]").set_input_files(str(reviews))
    expect(page.get_by_test_id("data-facts")).to_contain_text("semicolon", timeout=60_000)
    for fact in ("Windows-1252", "Text column: Meinung", "Label column: Urteil", "One label per text"):
        expect(page.get_by_test_id("data-facts")).to_contain_text(fact)
    expect(page.get_by_role("button", name="4  Training")).to_contain_text("13 epochs")
    page.get_by_role("button", name="4  Training").click()
    fill(page, "#num_train_epochs input", "5")  # enough for these few words, and half the time
    page.locator("#num_train_epochs input").press("Tab")
    page.click("#train")
    expect(page.locator("#panel .running")).to_be_visible()
    (run,) = list_runs(server.runs_dir)
    expect(page.locator("#merge")).to_be_visible(timeout=180_000)
    report = run.result()
    assert set(report["labels"]) == set(TONES)
    assert report["accuracy"] > report["baseline"]["accuracy"] + 0.4
    assert report["data"]["used"] == {"train": 315, "validation": 45, "test": 90}
    page.click("#merge")
    expect(page.locator(".working")).to_be_visible()
    expect(page.get_by_test_id("certificate")).to_contain_text("holds", timeout=120_000)
    config = json.loads((run.merged / "config.json").read_text(encoding="utf-8"))
    assert set(config["label2id"]) == set(TONES)
    page.click("#try-it")  # the Inference tab knows a run as soon as it is trained
    expect(page.locator("#examples")).to_contain_text(" war ")
    page.get_by_role("tab", name="Explain").click()
    expect(page.locator("#why-label")).to_be_visible()
    page.click("#rows-true input")
    expect(page.get_by_role("option")).to_have_count(1 + len(TONES))


def test_train_right_after_upload_uses_uploaded_file(
    server: Server,
    open_page: Open,
    reviews: Path,
) -> None:
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    before = page.locator("#dataset_name input").input_value()
    page.locator("#upload input[type=file]").set_input_files(str(reviews))
    expect(page.locator("#upload")).to_contain_text("Hotel Bewertungen")
    expect(page.locator("#dataset_name input")).not_to_have_value(before)  # from here on Train waits
    page.click("#train")
    expect(page.locator("#panel .running")).to_be_visible(timeout=60_000)
    run = list_runs(server.runs_dir)[0]
    assert "hotel" in run.config().dataset_name.lower()
    page.click("#stop")
    expect(page.locator("#stop")).to_be_hidden(timeout=60_000)


def test_balance_button_sets_class_weight_for_uneven_labels(open_page: Open, tmp_path: Path) -> None:
    rows = [
        f"The {THINGS[i % 10]} number {i} was fine;{'rare' if i % 20 == 0 else 'usual'}" for i in range(400)
    ]
    (tmp_path / "uneven.csv").write_text("\n".join(["text;label", *rows]), encoding="utf-8")
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    expect(page.get_by_test_id("data-facts")).to_be_visible(timeout=60_000)
    expect(page.locator("#balance")).to_be_hidden()
    page.locator("#upload input[type=file]").set_input_files(str(tmp_path / "uneven.csv"))
    expect(page.get_by_test_id("findings")).to_contain_text("'rare' only", timeout=60_000)
    page.click("#balance")
    expect(page.locator("#balance")).to_be_hidden()
    expect(page.locator("#class_weight input")).to_have_value("balanced")


def choose(page: Page, name: str, label: str) -> None:
    """Choose an option of a dropdown by its label."""
    page.click(f"#{name} input")
    page.get_by_role("option", name=label).click()


def test_ambiguous_numbers_are_resolved_by_decimal_mark(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    expect(page.get_by_test_id("data-facts")).to_be_visible(timeout=60_000)
    expect(page.locator("#decimal_mark")).to_be_hidden()
    page.locator("#upload input[type=file]").set_input_files(str(CASES / "ambiguous_numbers.csv"))
    expect(page.get_by_test_id("findings")).to_contain_text("can be read in two ways", timeout=60_000)
    expect(page.get_by_test_id("data-facts").get_by_role("alert")).to_contain_text("Choose the decimal mark")
    choose(page, "decimal_mark", "Point, as in 1,234.5")
    expect(page.get_by_test_id("data-preview")).to_contain_text("Numbers from 1100 to", timeout=60_000)
    expect(page.get_by_test_id("data-facts")).to_contain_text("rows for training")
    choose(page, "decimal_mark", "Comma, as in 1.234,5")
    expect(page.get_by_test_id("data-preview")).to_contain_text("Numbers from 1.1 to", timeout=60_000)


def test_zero_one_columns_are_used_as_several_labels_or_one(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    page.locator("#upload input[type=file]").set_input_files(str(CASES / "zero_one_columns.csv"))
    facts = page.get_by_test_id("data-facts")
    expect(facts).to_contain_text("Label columns: sound, price, service (guessed)", timeout=60_000)
    page.locator("#label_columns").get_by_label("sound").check()
    expect(facts).to_contain_text("Label columns: sound ·", timeout=60_000)
    page.locator("#label_columns").get_by_label("price").check()
    expect(facts).to_contain_text("Label columns: sound, price ·", timeout=60_000)
    page.locator("#label_columns").get_by_label("sound").uncheck()
    page.locator("#label_columns").get_by_label("price").uncheck()
    expect(facts).to_contain_text("Label columns: sound, price, service (guessed)", timeout=60_000)
    choose(page, "label_column", "service ·")
    expect(facts).to_contain_text("Label column: service", timeout=60_000)
    expect(facts).to_contain_text("One label per text")


def test_label_spelling_remedy_can_be_chosen(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    page.locator("#upload input[type=file]").set_input_files(str(CASES / "case_and_space.csv"))
    expect(page.get_by_test_id("findings")).to_contain_text("differ only in case or spaces", timeout=60_000)
    page.locator("#remedies").get_by_label("Make one label").check()
    expect(page.locator("#remedies").get_by_label("Make one label")).to_be_checked()


def test_head_with_other_label_names_offers_choice(open_page: Open, tmp_path: Path) -> None:
    model = make_tiny_bert(tmp_path / "model", num_labels=2)
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    page.locator("#upload input[type=file]").set_input_files(str(CASES / "case_and_space.csv"))
    expect(page.get_by_test_id("findings")).to_contain_text("differ only in case", timeout=60_000)
    page.locator("#remedies").get_by_label("Make one label").check()
    wait_for_answers(page)  # so that only the change of the base model causes what follows
    page.get_by_role("button", name="1  Model").click()
    fill(page, "#model_name_or_path input", str(model))
    page.locator("#model_name_or_path input").press("Enter")
    expect(page.locator("#model-facts")).to_contain_text("LABEL_0, LABEL_1", timeout=60_000)
    expect(page.get_by_test_id("findings")).to_contain_text("has a head for", timeout=60_000)
    choose(page, "base_head", "Keep it, matched by order")
    expect(page.get_by_test_id("data-facts")).to_contain_text("head is kept", timeout=60_000)


def test_sheet_and_header_row_are_inferred_and_changed(open_page: Open, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "About"
    book.active.append(["See the next sheet"])
    for title, above in (("Reviews", 2), ("More", 0)):
        sheet = book.create_sheet(title)
        for row in [[f"{title} of spring"], []][:above]:
            sheet.append(row)
        sheet.append(["text", "label"])
        for i in range(40):
            sheet.append([f"The {THINGS[i % 10]} number {i} was fine", "good" if i % 2 else "bad"])
    book.save(tmp_path / "book.xlsx")
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    page.locator("#upload input[type=file]").set_input_files(str(tmp_path / "book.xlsx"))
    facts = page.get_by_test_id("data-facts")
    expect(facts).to_contain_text("sheet Reviews · header in row 3", timeout=60_000)
    page.locator("#sheet_name input").click()
    page.get_by_role("option", name="More").click()
    expect(facts).to_contain_text("sheet More · header in row 1", timeout=60_000)
    fill(page, "#header_row input", "2")
    page.locator("#header_row input").press("Tab")
    expect(facts).to_contain_text("sheet More · header in row 2", timeout=60_000)
