"""Inspection of a data set before training: the facts and findings that the data card shows."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from small_data import write_csv

from peft_core.config import TrainConfig
from peft_core.data import inspection
from peft_core.data.inspection import WORD, inspect
from peft_core.errors import DataError
from peft_core.views.data import data_facts, data_findings, data_preview

GERMAN = "Nr;Kommentar;Kategorie\n" + "".join(
    f"{i};Das Frühstück Nummer {i} war {word}.;{label}\n"
    for i, (word, label) in enumerate([("schön", "gut"), ("übel", "schlecht"), ("mäßig", "geht so")] * 30)
)


def inspect_path(path: Path | str, **settings: Any) -> dict[str, Any]:
    inspected = inspect(TrainConfig.from_dict({"dataset_name": str(path), **settings}))
    assert json.loads(json.dumps(inspected)) == inspected, "JSON types alone"
    return inspected


def test_inspect_csv_reports_format_columns_labels_and_tokens(tmp_path: Path) -> None:
    (tmp_path / "stimmen.csv").write_bytes(GERMAN.encode("latin-1"))
    inspected = inspect_path(tmp_path / "stimmen.csv", max_length=12)
    facts = inspected["files"][0]
    assert (facts["delimiter"], facts["encoding"], facts["header"]) == ("semicolon", "cp1252", True)
    assert [column["name"] for column in inspected["columns"]] == ["Nr", "Kommentar", "Kategorie"]
    assert inspected["columns"][2]["samples"] == ["gut", "schlecht", "geht so"]
    assert inspected["in_force"]["text_column"] == "Kommentar" and "label_column" in inspected["guessed"]
    assert dict(inspected["labels"]["counts"]) == {"gut": 30, "schlecht": 30, "geht so": 30}
    assert inspected["used"] == {"train": 63, "validation": 9, "test": 18}
    assert inspected["error"] is None
    tokens = inspected["tokens"]
    assert sum(tokens["counts"]) == tokens["texts"] == 90
    assert len(tokens["edges"]) == len(tokens["counts"]) + 1
    assert 0 < tokens["truncated_share"] <= 1
    first = inspected["rows"][0]
    assert (first["row"], first["label"]) == ("stimmen.csv row 2", "gut")
    assert first["tokens"][0] == "[CLS]" and first["length"] <= 12
    assert [finding["kind"] for finding in inspected["findings"]] == ["broken_words", "truncated"]


def test_inspect_text_in_an_unknown_language_finds_broken_words(tmp_path: Path) -> None:
    """An English tokenizer splits German words into many pieces instead of unknown tokens."""
    german = "Die Lieferung kam pünktlich, aber die Verpackung war beschädigt und der Kundendienst schwieg."
    english = "The delivery was on time, but the parcel was damaged and the support never answered."
    write_csv(tmp_path / "de.csv", [(f"{german} {i}", "ab"[i % 2]) for i in range(40)])
    write_csv(tmp_path / "en.csv", [(f"{english} {i}", "ab"[i % 2]) for i in range(40)])
    assert [finding["kind"] for finding in inspect_path(tmp_path / "de.csv")["findings"]] == ["broken_words"]
    assert inspect_path(tmp_path / "en.csv")["findings"] == []


def test_word_pattern_splits_chinese_into_characters() -> None:
    assert WORD.findall("Don't!") == ["Don", "'", "t", "!"]
    assert WORD.findall("电影太长，5 stars") == ["电", "影", "太", "长", "，", "5", "stars"]


def test_inspect_data_that_stops_training_reports_error_and_findings(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [*[(f"Text {i}", "ab"[i % 2]) for i in range(20)], ("", "a")])
    inspected = inspect_path(tmp_path / "a.csv")
    assert "row 22, column 'text' is empty" in inspected["error"]
    assert inspected["findings"][0]["remedy"] == "empty" and inspected["rows"]
    mended = inspect_path(tmp_path / "a.csv", remedies=["empty"])
    assert mended["error"] is None and mended["dropped"][0]["rows"] == 1
    with pytest.raises(DataError, match="no file"):
        inspect_path(tmp_path / "missing.csv")


def test_inspect_without_a_local_tokenizer_reports_no_tokens() -> None:
    inspected = inspect_path("rotten_tomatoes", model_name_or_path="FacebookAI/roberta-base")
    assert inspected["tokens"] is None and "fetched when training starts" in inspected["no_tokens"]
    assert inspected["used"] == {"train": 3000, "validation": 1000, "test": 1000}


def test_inspect_many_rows_reads_a_sample_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MAX_SAMPLE_ROWS", 1000)
    write_csv(tmp_path / "a.csv", [(f"Text number {i}", "ab"[i > 20_000]) for i in range(40_000)])
    start = time.monotonic()
    inspected = inspect_path(tmp_path / "a.csv")
    assert time.monotonic() - start < 10
    assert inspected["looked_at"] == {"train": 1000}
    assert dict(inspected["labels"]["counts"]) == {"a": 501, "b": 499}
    assert "1,000 of the rows" in data_facts(inspected)


def test_data_views_escape_text_of_the_file(tmp_path: Path) -> None:
    rows = [(f"<script>alert({i})</script> text", "<b>yes</b>" if i % 2 else "no") for i in range(40)]
    write_csv(tmp_path / "<i>x.csv", [*rows, rows[0]], ("<u>text</u>", "label"))
    inspected = inspect_path(tmp_path / "<i>x.csv")
    page = data_facts(inspected) + data_preview(inspected) + data_findings(inspected["findings"])
    assert "comma between cells" in page and "guessed" in page and "1 row repeating" in page
    for tag in ("<script", "<b>yes", "<i>x", "<u>"):
        assert tag not in page
    assert "found no problems" in data_findings([])


def test_data_preview_shows_multi_label_and_number_columns(tmp_path: Path) -> None:
    lines = [{"text": f"Text {i}", "tags": ["a", "b"][: i % 3]} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    several = inspect_path(tmp_path / "a.jsonl")
    assert several["in_force"]["problem_type"] == "multi_label_classification"
    assert "no label" in data_preview(several)
    write_csv(tmp_path / "b.csv", [(f"Text {i}", i / 7) for i in range(60)])
    assert "Numbers from 0 to 8.42857." in data_preview(inspect_path(tmp_path / "b.csv"))


@pytest.mark.parametrize(("name", "row"), [("one_bad_byte.csv", 6), ("zero_byte.csv", 5)])
def test_inspect_shows_a_finding_for_a_row_with_a_bad_byte(name: str, row: int) -> None:
    path = Path(__file__).parents[1] / "cases" / name
    inspected = inspect(TrainConfig(dataset_name=str(path)))
    finding = inspected["findings"][0]
    assert (finding["kind"], finding["count"]) == ("damaged_text", 1)
    assert finding["examples"] == [f"{name} row {row}"]
    assert f"row {row}" in data_findings(inspected["findings"])


def test_inspect_header_without_rows_raises_data_error() -> None:
    path = Path(__file__).parents[1] / "cases" / "header_only.csv"
    with pytest.raises(DataError, match="has no rows"):
        inspect(TrainConfig(dataset_name=str(path)))
