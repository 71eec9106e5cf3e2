"""A person's own file, from upload to a merged model, in a real Chromium."""

import json
import random
from pathlib import Path

import openpyxl
import pytest
from app_server import Server
from conftest import Open
from playwright.sync_api import expect

from peft_core.runs import list_runs

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
    """Semicolons, Latin-1, a comma in the texts, five labels that are words."""
    rng, rows = random.Random(3), {}
    while len(rows) < 600:
        label = list(TONES)[len(rows) % len(TONES)]
        first, second = rng.sample(THINGS, 2)
        words = rng.sample(TONES[label], 2)
        rows[f"{first} war {words[0]}, {second} {words[1]} ({rng.randint(1, 99)})"] = label
    path = tmp_path / "Hotel Bewertungen.csv"
    lines = ["Meinung;Urteil", *(f"{text};{label}" for text, label in rows.items())]
    path.write_text("\r\n".join(lines), encoding="latin-1")
    return path


def test_a_file_of_ones_own_goes_from_upload_to_a_merged_model(
    server: Server,
    open_page: Open,
    reviews: Path,
) -> None:
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    page.locator("#upload input[type=file]").set_input_files(str(reviews))
    expect(page.get_by_test_id("data-facts")).to_contain_text("semicolon", timeout=60_000)
    for fact in ("Windows-1252", "Text column: Meinung", "Label column: Urteil", "One label a text"):
        expect(page.get_by_test_id("data-facts")).to_contain_text(fact)
    expect(page.get_by_role("button", name="4  Training")).to_contain_text("10 epochs")
    page.get_by_role("button", name="4  Training").click()
    page.fill("#num_train_epochs input", "5")  # enough for these few words, and half the time
    page.locator("#num_train_epochs input").press("Tab")
    page.click("#train")
    expect(page.locator("#panel .running")).to_be_visible()
    (run,) = list_runs(server.runs_dir)
    expect(page.locator("#merge")).to_be_visible(timeout=180_000)
    result = run.result()
    assert set(result["labels"]) == set(TONES)
    assert result["accuracy"] > result["baseline"]["accuracy"] + 0.4
    assert result["data"]["used"] == {"train": 420, "validation": 60, "test": 120}
    page.click("#merge")
    expect(page.get_by_test_id("certificate")).to_contain_text("holds", timeout=120_000)
    config = json.loads((run.merged / "config.json").read_text(encoding="utf-8"))
    assert set(config["label2id"]) == set(TONES)
    page.click("#try-it")  # what is asked of a run knows it as soon as it is trained
    expect(page.locator("#examples")).to_contain_text(" war ", timeout=30_000)
    page.get_by_role("tab", name="Why?").click()
    expect(page.locator("#why-label")).to_be_visible()
    page.click("#rows-true input")
    expect(page.get_by_role("option")).to_have_count(1 + len(TONES))


def test_train_pressed_at_once_trains_the_uploaded_file(
    server: Server,
    open_page: Open,
    reviews: Path,
) -> None:
    page = open_page()
    page.get_by_role("button", name="2  Data").click()
    page.locator("#upload input[type=file]").set_input_files(str(reviews))
    expect(page.locator("#upload")).to_contain_text("Hotel Bewertungen")
    page.wait_for_timeout(300)  # nobody is faster; the click waits while the button does
    page.click("#train")
    expect(page.locator("#panel .running")).to_be_visible(timeout=60_000)
    run = list_runs(server.runs_dir)[0]
    assert "hotel" in run.config().dataset_name.lower()
    page.click("#stop")
    expect(page.locator("#stop")).to_be_hidden(timeout=60_000)


def test_uneven_labels_are_balanced_by_one_click(open_page: Open, tmp_path: Path) -> None:
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


def test_sheet_and_header_row_are_guessed_named_and_changed(open_page: Open, tmp_path: Path) -> None:
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
    page.fill("#header_row input", "2")
    page.locator("#header_row input").press("Tab")
    expect(facts).to_contain_text("sheet More · header in row 2", timeout=60_000)
