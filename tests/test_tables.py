"""A file of rows under a model: each row answered, in order and judged, or one sentence and no file."""

import csv
import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import copy_of

from peft_core.data import streams, writers
from peft_core.errors import DataError, RunError
from peft_core.inference import tables, trained_labels
from peft_core.inference.decision import DecisionRule
from peft_core.inference.predictor import Predictor
from peft_core.inference.tables import Request, predict_file, preview_file
from peft_core.inference.trained_labels import TrainedLabels
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows
from peft_core.views.inference import file_result

LABELS = ["bad", "good"]
CASES = Path(__file__).parent / "cases"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (streams, writers):
        monkeypatch.setattr(module, "CHUNK_ROWS", 7)


def file_of(run: Run, folder: Path, suffix: str = ".csv", **changes: Any) -> Path:
    """The run's own test rows as a file with a number beside each."""
    rows = load_evaluation_rows(run)
    columns = {"id": range(len(rows)), "review": rows.texts, "mark": [LABELS[i] for i in rows.labels]}
    frame = pd.DataFrame({**columns, **changes})
    path = folder / f"reviews{suffix}"
    writer = {".csv": frame.to_csv, ".xlsx": frame.to_excel, ".parquet": frame.to_parquet}[suffix]
    writer(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
def test_every_row_is_answered_in_order_and_judged(suffix: str, own_run: Run, tmp_path: Path) -> None:
    path = file_of(own_run, tmp_path, suffix)
    heard: list[float] = []
    request = Request(path, "review", label="mark")
    done = predict_file(Predictor(own_run.folder), request, lambda share, what: heard.append(share))
    rows = load_evaluation_rows(own_run)
    read = {".csv": pd.read_csv, ".xlsx": pd.read_excel, ".parquet": pd.read_parquet}[suffix]
    found = read(done["path"])
    assert found["id"].tolist() == list(range(len(rows)))
    assert found["review"].tolist() == rows.texts
    assert found["predicted_label"].tolist() == [LABELS[i] for i in rows.logits.argmax(-1)]
    shares = found[["probability_bad", "probability_good"]].to_numpy()
    assert (
        np.abs(shares - DecisionRule().probabilities(rows.logits, "single_label_classification")).max() < 1e-5
    )
    assert found["confidence"].tolist() == pytest.approx(shares.max(-1).tolist())
    assert done["metrics"]["accuracy"] == own_run.result()["accuracy"]
    assert (done["rows"], done["empty"], done["metrics"]["judged"]) == (len(rows), 0, len(rows))
    assert heard == sorted(heard) and heard[-1] == pytest.approx(1.0)


def test_a_row_without_text_has_no_answer_and_the_rest_has(own_run: Run, tmp_path: Path) -> None:
    texts = load_evaluation_rows(own_run).texts
    path = file_of(own_run, tmp_path, review=["", "  ", *texts[2:]])
    done = predict_file(Predictor(own_run.folder), Request(path, "review"))
    found = pd.read_csv(done["path"])
    assert done["empty"] == 2 and done["metrics"] is None
    assert found["predicted_label"].isna().tolist() == [True, True, *[False] * (len(texts) - 2)]


def test_predict_file_with_blank_lines_gives_the_same_rows(own_run: Run) -> None:
    done = predict_file(Predictor(own_run.folder), Request(CASES / "blank_rows_to_predict.csv", "text"))
    with Path(done["path"]).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert [row[0] for row in rows] == [
        "the battery lasts all week", "", "screen flickers all the time", "", "works"
    ]  # fmt: skip
    assert (done["rows"], done["empty"]) == (5, 2)
    assert [bool(row[header.index("predicted_label")]) for row in rows] == [True, False, True, False, True]


def test_predict_file_of_json_lines_keeps_the_other_keys(own_run: Run) -> None:
    path = CASES / "other_columns_to_predict.jsonl"
    done = predict_file(Predictor(own_run.folder), Request(path, "text"))
    before = path.read_text("utf-8").splitlines()
    after = Path(done["path"]).read_text("utf-8").splitlines()
    assert [line.split(', "predicted_label"')[0] + "}" for line in after] == before
    assert all(json.loads(line)["predicted_label"] in LABELS for line in after)


@pytest.mark.parametrize(("name", "row"), [("one_bad_byte.csv", 6), ("zero_byte.csv", 5)])
def test_predict_file_with_one_bad_byte_names_the_row(name: str, row: int, own_run: Run) -> None:
    done = predict_file(Predictor(own_run.folder), Request(CASES / name, "text"))
    assert done["rows"] == 40 and f"row {row}" in done["notes"][0]
    assert f"row {row}" in file_result(done, "adapter")
    texts = pd.read_csv(done["path"])["text"].tolist()
    assert sum("café" in text for text in texts) == sum(
        "caf" in text and "\ufffd" not in text for text in texts
    )


def test_predict_file_of_a_workbook_says_which_sheet(own_run: Run) -> None:
    path = CASES / "second_sheet.xlsx"
    looked = preview_file(path, own_run)
    assert (looked["sheet"], looked["header_row"], looked["sheets"]) == ("Reviews", 3, ["About", "Reviews"])
    assert looked["text"] == "text"
    done = predict_file(Predictor(own_run.folder), Request(path, "text"))
    assert done["rows"] == 40
    assert "sheet Reviews, header in row 3" in file_result(done, "adapter")
    with pytest.raises(DataError, match="has no sheet 'Other'"):
        predict_file(Predictor(own_run.folder), Request(path, "text", sheet_name="Other"))


@pytest.mark.parametrize("name", ["header_only.csv", "empty.csv"])
def test_predict_file_without_rows_is_one_sentence(name: str, own_run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes((CASES / "header_only.csv").read_bytes() if name[0] == "h" else b"\n\n")
    with pytest.raises(DataError, match="holds no rows"):
        predict_file(Predictor(own_run.folder), Request(tmp_path / name, "text"))


def test_the_saved_rule_decides_and_abstains(own_run: Run, tmp_path: Path) -> None:
    rows = load_evaluation_rows(own_run)
    rule = DecisionRule(temperature=4.0, thresholds=(0.001, 0.999), abstain_below=0.6)
    rule.save(own_run, ("bad", "good"))
    done = predict_file(
        Predictor(own_run.folder), Request(file_of(own_run, tmp_path), "review", label="mark")
    )
    found = pd.read_csv(done["path"])
    silent = rule.abstains(rows.logits, "single_label_classification")
    assert 0 < silent.sum() < len(rows) and done["abstained"] == silent.sum()
    assert found["predicted_label"].isna().tolist() == found["abstained"].tolist() == silent.tolist()
    assert done["metrics"]["judged"] == (~silent).sum()


def test_several_labels_and_numbers(topics: Run, stars: Run, tmp_path: Path) -> None:
    for run, columns in ((topics, {"food", "drink", "room"}), (stars, set())):
        rows = load_evaluation_rows(run)
        names = ["food", "drink", "room"]
        marks = (
            [json.dumps([n for n, y in zip(names, row, strict=True) if y]) for row in rows.labels]
            if columns
            else rows.labels
        )
        path = tmp_path / f"{run.run_id}.csv"
        pd.DataFrame({"text": rows.texts, "mark": marks}).to_csv(path, index=False)
        done = predict_file(Predictor(run.folder), Request(path, "text"))
        found = pd.read_csv(done["path"])
        assert len(found) == len(rows)
        if columns:
            assert {f"probability_{name}" for name in columns} < set(found.columns)
            given = (rows.logits >= 0).astype(int)
            wanted = [
                ", ".join(n for n, y in zip(names, row, strict=True) if y) or "no label" for row in given
            ]
            assert found["predicted_label"].tolist() == wanted
        else:
            assert np.abs(found["predicted_value"] - rows.logits[:, 0]).max() < 1e-3


def test_predict_file_applies_the_remedies_of_the_run_to_its_labels(
    own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that a run was trained on was refused where a remedy had changed its labels."""
    marks = ["Bad", " good ", "rare", *[LABELS[i] for i in load_evaluation_rows(own_run).labels[3:]]]
    path = file_of(own_run, tmp_path, mark=marks)
    request = Request(path, "review", label="mark")
    with pytest.raises(DataError, match="knows no label 'Bad'"):
        predict_file(Predictor(own_run.folder), request)
    config = replace(own_run.config(), remedies=("label_spelling", "small_classes"))
    monkeypatch.setattr(Run, "config", lambda _: config)
    dropped = [{"remedy": "small_classes", "split": "train", "rows": 1, "labels": ["rare"]}]
    monkeypatch.setattr(trained_labels, "trained_data", lambda _: {"dropped": dropped})
    done = predict_file(Predictor(own_run.folder), request)
    assert (done["rows"], done["metrics"]["judged"]) == (40, 39)


def test_labels_of_a_file_lose_those_that_training_left_out(
    topics: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = [{"remedy": "small_classes", "split": "train", "rows": 1, "labels": ["rare"]}]
    monkeypatch.setattr(trained_labels, "trained_data", lambda _: {"dropped": dropped})
    labels = TrainedLabels(topics, ["food", "drink"], "multi_label_classification")
    assert labels.read(["['food', 'rare']", "['rare']", "[]"], "topics") == [("food",), None, ()]


def test_pairs(pairs: Run, tmp_path: Path) -> None:
    rows = load_evaluation_rows(pairs)
    path = tmp_path / "pairs.csv"
    pd.DataFrame({"q": rows.texts, "a": rows.pairs}).to_csv(path, index=False)
    done = predict_file(Predictor(pairs.folder), Request(path, "q", "a"))
    assert pd.read_csv(done["path"])["predicted_label"].tolist() == [
        LABELS[i] for i in rows.logits.argmax(-1)
    ]
    with pytest.raises(DataError, match="reads pairs; name the second text's column"):
        predict_file(Predictor(pairs.folder), Request(path, "q"))


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        ({"text": "text"}, "has no column 'text'; it has 'id', 'review', 'mark'"),
        ({"text": ""}, "No text column is named"),
        ({"text": "review", "label": "id"}, "data row 1.*knows no label '0', only 'bad', 'good'"),
        ({"text": "review", "text_pair": "id"}, "reads one text; name one text column"),
        ({"text": "review", "max_rows": 10}, "more than 10 rows"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_leaves_no_file(
    request_of: dict[str, Any], words: str, own_run: Run, tmp_path: Path
) -> None:
    path = file_of(own_run, tmp_path)
    with pytest.raises(DataError, match=words):
        predict_file(Predictor(own_run.folder), Request(path, **request_of))
    assert not (own_run.folder / tables.PREDICTIONS).exists()


def test_a_damaged_last_row_leaves_no_file(own_run: Run, tmp_path: Path) -> None:
    path = file_of(own_run, tmp_path)
    with path.open("a", encoding="utf-8") as file:
        file.write("1,2,3,4,5\n")
    with pytest.raises(DataError, match="5 cells where 3"):
        predict_file(Predictor(own_run.folder), Request(path, "review"))
    assert not (own_run.folder / tables.PREDICTIONS).exists()


def test_an_end_in_the_middle_leaves_no_file(own_run: Run, tmp_path: Path) -> None:
    def stop(share: float, what: str) -> None:
        if share > 0.5:
            raise RunError("Cancelled")

    with pytest.raises(RunError, match="Cancelled"):
        predict_file(Predictor(own_run.folder), Request(file_of(own_run, tmp_path), "review"), stop)
    assert not list((own_run.folder / tables.PREDICTIONS).iterdir())


@pytest.mark.parametrize("small_disk", [100], indirect=True)
def test_a_full_disk_leaves_no_file(small_disk: Path, finished_run: Run, tmp_path: Path) -> None:
    run = copy_of(finished_run, small_disk)
    path = tmp_path / "many.csv"
    path.write_text("review\n" + "The food was good.\n" * 2000, encoding="utf-8")
    with pytest.raises(RunError, match="The disk is full"):
        predict_file(Predictor(run.folder), Request(path, "review", exact=True))
    assert not list((run.folder / tables.PREDICTIONS).iterdir())


def test_a_look_finds_the_columns_of_the_run_or_the_longest_text(own_run: Run, tmp_path: Path) -> None:
    seen = preview_file(file_of(own_run, tmp_path), own_run)
    assert seen["columns"] == ["id", "review", "mark"]
    assert (seen["text"], seen["text_pair"], seen["label"]) == ("review", None, None)
    assert len(seen["rows"]) == 5
    (tmp_path / "own.csv").write_text("label,text\nbad,It was bad\n", encoding="utf-8")
    seen = preview_file(tmp_path / "own.csv", own_run)
    assert (seen["text"], seen["label"]) == ("text", "label")


def test_only_the_newest_files_are_kept(own_run: Run, tmp_path: Path) -> None:
    path = file_of(own_run, tmp_path)
    predictor = Predictor(own_run.folder)
    made = [predict_file(predictor, Request(path, "review"))["path"] for _ in range(7)]
    assert {str(file) for file in (own_run.folder / tables.PREDICTIONS).iterdir()} == set(made[-5:])


@pytest.mark.parametrize(
    ("number", "sentence"), [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "Read-only file system")]
)
def test_predict_file_without_room_for_its_folder_raises_one_sentence(
    number: int, sentence: str, own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, path = Predictor(own_run.folder), file_of(own_run, tmp_path)

    def refuse(folder: Path, **_: Any) -> None:
        raise OSError(number, os.strerror(number), str(folder))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=sentence) as refusal:
        predict_file(predictor, Request(path, "review"))
    assert str(tmp_path) not in str(refusal.value)
