"""What the data card is told of a data set before training."""

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


def look(path: Path | str, **settings: Any) -> dict[str, Any]:
    found = inspect(TrainConfig.from_dict({"dataset_name": str(path), **settings}))
    assert json.loads(json.dumps(found)) == found, "JSON types alone"
    return found


def test_a_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "stimmen.csv").write_bytes(GERMAN.encode("latin-1"))
    found = look(tmp_path / "stimmen.csv", max_length=12)
    facts = found["files"][0]
    assert (facts["delimiter"], facts["encoding"], facts["header"]) == ("semicolon", "cp1252", True)
    assert [column["name"] for column in found["columns"]] == ["Nr", "Kommentar", "Kategorie"]
    assert found["columns"][2]["samples"] == ["gut", "schlecht", "geht so"]
    assert found["in_force"]["text_column"] == "Kommentar" and "label_column" in found["guessed"]
    assert dict(found["labels"]["counts"]) == {"gut": 30, "schlecht": 30, "geht so": 30}
    assert found["used"] == {"train": 63, "validation": 9, "test": 18}
    assert found["error"] is None
    tokens = found["tokens"]
    assert sum(tokens["counts"]) == tokens["texts"] == 90
    assert len(tokens["edges"]) == len(tokens["counts"]) + 1
    assert 0 < tokens["truncated_share"] <= 1
    first = found["rows"][0]
    assert (first["row"], first["label"]) == ("stimmen.csv row 2", "gut")
    assert first["tokens"][0] == "[CLS]" and first["length"] <= 12
    assert [finding["kind"] for finding in found["findings"]] == ["broken_words", "truncated"]


def test_a_language_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    """No token of German is unknown to an English tokenizer: it spells the words in pieces."""
    german = "Die Lieferung kam pünktlich, aber die Verpackung war beschädigt und der Kundendienst schwieg."
    english = "The delivery was on time, but the parcel was damaged and the support never answered."
    write_csv(tmp_path / "de.csv", [(f"{german} {i}", "ab"[i % 2]) for i in range(40)])
    write_csv(tmp_path / "en.csv", [(f"{english} {i}", "ab"[i % 2]) for i in range(40)])
    assert [one["kind"] for one in look(tmp_path / "de.csv")["findings"]] == ["broken_words"]
    assert look(tmp_path / "en.csv")["findings"] == []


def test_words_where_no_space_parts_them() -> None:
    assert WORD.findall("Don't!") == ["Don", "'", "t", "!"]
    assert WORD.findall("电影太长，5 stars") == ["电", "影", "太", "长", "，", "5", "stars"]


def test_what_stops_training_is_told_beside_what_can_be_seen(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [*[(f"Text {i}", "ab"[i % 2]) for i in range(20)], ("", "a")])
    found = look(tmp_path / "a.csv")
    assert "row 22, column 'text' is empty" in found["error"]
    assert found["findings"][0]["remedy"] == "empty" and found["rows"]
    mended = look(tmp_path / "a.csv", remedies=["empty"])
    assert mended["error"] is None and mended["dropped"][0]["rows"] == 1
    with pytest.raises(DataError, match="no file"):
        look(tmp_path / "missing.csv")


def test_embedded_data_and_a_model_whose_tokenizer_is_not_here() -> None:
    found = look("rotten_tomatoes", model_name_or_path="FacebookAI/roberta-base")
    assert found["tokens"] is None and "fetched when training starts" in found["no_tokens"]
    assert found["used"] == {"train": 3000, "validation": 1000, "test": 1000}


def test_many_rows_are_looked_at_in_part_and_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MAX_SAMPLE_ROWS", 1000)
    write_csv(tmp_path / "a.csv", [(f"Text number {i}", "ab"[i > 20_000]) for i in range(40_000)])
    start = time.monotonic()
    found = look(tmp_path / "a.csv")
    assert time.monotonic() - start < 10
    assert found["looked_at"] == {"train": 1000}
    assert dict(found["labels"]["counts"]) == {"a": 501, "b": 499}
    assert "1,000 of the rows" in data_facts(found)


def test_pictures_show_it_and_escape_what_a_file_holds(tmp_path: Path) -> None:
    rows = [(f"<script>alert({i})</script> text", "<b>yes</b>" if i % 2 else "no") for i in range(40)]
    write_csv(tmp_path / "<i>x.csv", [*rows, rows[0]], ("<u>text</u>", "label"))
    found = look(tmp_path / "<i>x.csv")
    page = data_facts(found) + data_preview(found) + data_findings(found["findings"])
    assert "comma between cells" in page and "guessed" in page and "1 row repeating" in page
    for tag in ("<script", "<b>yes", "<i>x", "<u>"):
        assert tag not in page
    assert "nothing to mend" in data_findings([])


def test_pictures_of_several_labels_and_of_numbers(tmp_path: Path) -> None:
    lines = [{"text": f"Text {i}", "tags": ["a", "b"][: i % 3]} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    several = look(tmp_path / "a.jsonl")
    assert several["in_force"]["problem_type"] == "multi_label_classification"
    assert "no label" in data_preview(several)
    write_csv(tmp_path / "b.csv", [(f"Text {i}", i / 7) for i in range(60)])
    assert "Numbers from 0 to 8.42857." in data_preview(look(tmp_path / "b.csv"))


@pytest.mark.parametrize(("name", "row"), [("one_bad_byte.csv", 6), ("zero_byte.csv", 5)])
def test_inspect_shows_a_finding_for_a_row_with_a_bad_byte(name: str, row: int) -> None:
    path = Path(__file__).parent / "cases" / name
    inspected = inspect(TrainConfig(dataset_name=str(path)))
    finding = inspected["findings"][0]
    assert (finding["kind"], finding["count"]) == ("damaged_text", 1)
    assert finding["examples"] == [f"{name} row {row}"]
    assert f"row {row}" in data_findings(inspected["findings"])


def test_inspect_of_a_header_alone_says_that_no_rows_are_there() -> None:
    path = Path(__file__).parent / "cases" / "header_only.csv"
    with pytest.raises(DataError, match="holds no rows"):
        inspect(TrainConfig(dataset_name=str(path)))
