"""Predictions for a file: every row is predicted in order, or an error is raised and no file is written."""

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
CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (streams, writers):
        monkeypatch.setattr(module, "CHUNK_ROWS", 7)


def file_of(run: Run, folder: Path, suffix: str = ".csv", **changes: Any) -> Path:
    """Write the run's own test rows to a file, with a number beside each."""
    rows = load_evaluation_rows(run)
    columns = {"id": range(len(rows)), "review": rows.texts, "mark": [LABELS[i] for i in rows.labels]}
    frame = pd.DataFrame({**columns, **changes})
    path = folder / f"reviews{suffix}"
    writer = {".csv": frame.to_csv, ".xlsx": frame.to_excel, ".parquet": frame.to_parquet}[suffix]
    writer(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".parquet"])
def test_predict_file_keeps_row_order_and_measures_metrics(suffix: str, own_run: Run, tmp_path: Path) -> None:
    path = file_of(own_run, tmp_path, suffix)
    progress: list[float] = []
    request = Request(path, "review", label="mark")
    report = predict_file(Predictor(own_run.folder), request, lambda share, what: progress.append(share))
    rows = load_evaluation_rows(own_run)
    read = {".csv": pd.read_csv, ".xlsx": pd.read_excel, ".parquet": pd.read_parquet}[suffix]
    predictions = read(report["path"])
    assert predictions["id"].tolist() == list(range(len(rows)))
    assert predictions["review"].tolist() == rows.texts
    assert predictions["predicted_label"].tolist() == [LABELS[i] for i in rows.logits.argmax(-1)]
    shares = predictions[["probability_bad", "probability_good"]].to_numpy()
    assert (
        np.abs(shares - DecisionRule().probabilities(rows.logits, "single_label_classification")).max() < 1e-5
    )
    assert predictions["confidence"].tolist() == pytest.approx(shares.max(-1).tolist())
    assert report["metrics"]["accuracy"] == own_run.result()["accuracy"]
    assert (report["rows"], report["empty"], report["metrics"]["judged"]) == (len(rows), 0, len(rows))
    assert progress == sorted(progress) and progress[-1] == pytest.approx(1.0)


def test_predict_file_with_empty_texts_predicts_the_other_rows(own_run: Run, tmp_path: Path) -> None:
    texts = load_evaluation_rows(own_run).texts
    path = file_of(own_run, tmp_path, review=["", "  ", *texts[2:]])
    report = predict_file(Predictor(own_run.folder), Request(path, "review"))
    predictions = pd.read_csv(report["path"])
    assert report["empty"] == 2 and report["metrics"] is None
    assert predictions["predicted_label"].isna().tolist() == [True, True, *[False] * (len(texts) - 2)]


def test_predict_file_with_blank_lines_gives_the_same_rows(own_run: Run) -> None:
    report = predict_file(Predictor(own_run.folder), Request(CASES / "blank_rows_to_predict.csv", "text"))
    with Path(report["path"]).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert [row[0] for row in rows] == [
        "the battery lasts all week", "", "screen flickers all the time", "", "works"
    ]  # fmt: skip
    assert (report["rows"], report["empty"]) == (5, 2)
    assert [bool(row[header.index("predicted_label")]) for row in rows] == [True, False, True, False, True]


def test_predict_file_of_json_lines_keeps_the_other_keys(own_run: Run) -> None:
    path = CASES / "other_columns_to_predict.jsonl"
    report = predict_file(Predictor(own_run.folder), Request(path, "text"))
    before = path.read_text("utf-8").splitlines()
    after = Path(report["path"]).read_text("utf-8").splitlines()
    assert [line.split(', "predicted_label"')[0] + "}" for line in after] == before
    assert all(json.loads(line)["predicted_label"] in LABELS for line in after)


@pytest.mark.parametrize(("name", "row"), [("one_bad_byte.csv", 6), ("zero_byte.csv", 5)])
def test_predict_file_with_one_bad_byte_names_the_row(name: str, row: int, own_run: Run) -> None:
    report = predict_file(Predictor(own_run.folder), Request(CASES / name, "text"))
    assert report["rows"] == 40 and f"row {row}" in report["notes"][0]
    assert f"row {row}" in file_result(report, "adapter")
    texts = pd.read_csv(report["path"])["text"].tolist()
    assert sum("café" in text for text in texts) == sum(
        "caf" in text and "\ufffd" not in text for text in texts
    )


def test_predict_file_of_a_workbook_reports_the_sheet(own_run: Run) -> None:
    path = CASES / "second_sheet.xlsx"
    preview = preview_file(path, own_run)
    assert (preview["sheet"], preview["header_row"], preview["sheets"]) == (
        "Reviews",
        3,
        ["About", "Reviews"],
    )
    assert preview["text"] == "text"
    report = predict_file(Predictor(own_run.folder), Request(path, "text"))
    assert report["rows"] == 40
    assert "sheet Reviews, header in row 3" in file_result(report, "adapter")
    with pytest.raises(DataError, match="has no sheet 'Other'"):
        predict_file(Predictor(own_run.folder), Request(path, "text", sheet_name="Other"))


@pytest.mark.parametrize("name", ["header_only.csv", "empty.csv"])
def test_predict_file_without_rows_raises_data_error(name: str, own_run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes((CASES / "header_only.csv").read_bytes() if name[0] == "h" else b"\n\n")
    with pytest.raises(DataError, match="has no rows"):
        predict_file(Predictor(own_run.folder), Request(tmp_path / name, "text"))


def test_predict_file_applies_the_saved_decision_rule(own_run: Run, tmp_path: Path) -> None:
    rows = load_evaluation_rows(own_run)
    rule = DecisionRule(temperature=4.0, thresholds=(0.001, 0.999), abstain_below=0.6)
    rule.save(own_run, ("bad", "good"))
    report = predict_file(
        Predictor(own_run.folder), Request(file_of(own_run, tmp_path), "review", label="mark")
    )
    predictions = pd.read_csv(report["path"])
    silent = rule.abstains(rows.logits, "single_label_classification")
    assert 0 < silent.sum() < len(rows) and report["abstained"] == silent.sum()
    assert (
        predictions["predicted_label"].isna().tolist() == predictions["abstained"].tolist() == silent.tolist()
    )
    assert report["metrics"]["judged"] == (~silent).sum()


def test_predict_file_of_multi_label_and_regression_runs_writes_their_columns(
    topics: Run, stars: Run, tmp_path: Path
) -> None:
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
        report = predict_file(Predictor(run.folder), Request(path, "text"))
        predictions = pd.read_csv(report["path"])
        assert len(predictions) == len(rows)
        if columns:
            assert {f"probability_{name}" for name in columns} < set(predictions.columns)
            predicted = (rows.logits >= 0).astype(int)
            expected = [
                ", ".join(n for n, y in zip(names, row, strict=True) if y) or "no label" for row in predicted
            ]
            assert predictions["predicted_label"].tolist() == expected
        else:
            assert np.abs(predictions["predicted_value"] - rows.logits[:, 0]).max() < 1e-3


def test_predict_file_applies_the_remedies_of_the_run_to_its_labels(
    own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a run's own training file was refused if a remedy had changed its labels."""
    marks = ["Bad", " good ", "rare", *[LABELS[i] for i in load_evaluation_rows(own_run).labels[3:]]]
    path = file_of(own_run, tmp_path, mark=marks)
    request = Request(path, "review", label="mark")
    with pytest.raises(DataError, match="has no label 'Bad'"):
        predict_file(Predictor(own_run.folder), request)
    config = replace(own_run.config(), remedies=("label_spelling", "small_classes"))
    monkeypatch.setattr(Run, "config", lambda _: config)
    dropped = [{"remedy": "small_classes", "split": "train", "rows": 1, "labels": ["rare"]}]
    monkeypatch.setattr(trained_labels, "trained_data", lambda _: {"dropped": dropped})
    report = predict_file(Predictor(own_run.folder), request)
    assert (report["rows"], report["metrics"]["judged"]) == (40, 39)


def test_trained_labels_omit_labels_that_training_dropped(
    topics: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = [{"remedy": "small_classes", "split": "train", "rows": 1, "labels": ["rare"]}]
    monkeypatch.setattr(trained_labels, "trained_data", lambda _: {"dropped": dropped})
    labels = TrainedLabels(topics, ["food", "drink"], "multi_label_classification")
    assert labels.read(["['food', 'rare']", "['rare']", "[]"], "topics") == [("food",), None, ()]


def test_predict_file_of_pairs_requires_both_columns(pairs: Run, tmp_path: Path) -> None:
    rows = load_evaluation_rows(pairs)
    path = tmp_path / "pairs.csv"
    pd.DataFrame({"q": rows.texts, "a": rows.pairs}).to_csv(path, index=False)
    report = predict_file(Predictor(pairs.folder), Request(path, "q", "a"))
    assert pd.read_csv(report["path"])["predicted_label"].tolist() == [
        LABELS[i] for i in rows.logits.argmax(-1)
    ]
    with pytest.raises(DataError, match="reads pairs; name the second text's column"):
        predict_file(Predictor(pairs.folder), Request(path, "q"))


@pytest.mark.parametrize(
    ("request_arguments", "words"),
    [
        ({"text": "text"}, "has no column 'text'; it has 'id', 'review', 'mark'"),
        ({"text": ""}, "No text column is named"),
        ({"text": "review", "label": "id"}, "data row 1.*has no label '0', only 'bad', 'good'"),
        ({"text": "review", "text_pair": "id"}, "reads one text; name one text column"),
        ({"text": "review", "max_rows": 10}, "more than 10 rows"),
    ],
)
def test_predict_file_with_invalid_request_raises_and_writes_nothing(
    request_arguments: dict[str, Any], words: str, own_run: Run, tmp_path: Path
) -> None:
    path = file_of(own_run, tmp_path)
    with pytest.raises(DataError, match=words):
        predict_file(Predictor(own_run.folder), Request(path, **request_arguments))
    assert not (own_run.folder / tables.PREDICTIONS).exists()


def test_predict_file_with_malformed_last_row_writes_nothing(own_run: Run, tmp_path: Path) -> None:
    path = file_of(own_run, tmp_path)
    with path.open("a", encoding="utf-8") as file:
        file.write("1,2,3,4,5\n")
    with pytest.raises(DataError, match="5 cells where 3"):
        predict_file(Predictor(own_run.folder), Request(path, "review"))
    assert not (own_run.folder / tables.PREDICTIONS).exists()


def test_predict_file_canceled_midway_writes_nothing(own_run: Run, tmp_path: Path) -> None:
    def stop(share: float, what: str) -> None:
        if share > 0.5:
            raise RunError("Cancelled")

    with pytest.raises(RunError, match="Cancelled"):
        predict_file(Predictor(own_run.folder), Request(file_of(own_run, tmp_path), "review"), stop)
    assert not list((own_run.folder / tables.PREDICTIONS).iterdir())


@pytest.mark.parametrize("small_disk", [100], indirect=True)
def test_predict_file_on_full_disk_writes_nothing(
    small_disk: Path, finished_run: Run, tmp_path: Path
) -> None:
    run = copy_of(finished_run, small_disk)
    path = tmp_path / "many.csv"
    path.write_text("review\n" + "The food was good.\n" * 2000, encoding="utf-8")
    with pytest.raises(RunError, match="The disk is full"):
        predict_file(Predictor(run.folder), Request(path, "review", exact=True))
    assert not list((run.folder / tables.PREDICTIONS).iterdir())


def test_preview_file_infers_columns_of_the_run_or_the_longest_text(own_run: Run, tmp_path: Path) -> None:
    preview = preview_file(file_of(own_run, tmp_path), own_run)
    assert preview["columns"] == ["id", "review", "mark"]
    assert (preview["text"], preview["text_pair"], preview["label"]) == ("review", None, None)
    assert len(preview["rows"]) == 5
    (tmp_path / "own.csv").write_text("label,text\nbad,It was bad\n", encoding="utf-8")
    preview = preview_file(tmp_path / "own.csv", own_run)
    assert (preview["text"], preview["label"]) == ("text", "label")


def test_predict_file_keeps_the_five_newest_files(own_run: Run, tmp_path: Path) -> None:
    path = file_of(own_run, tmp_path)
    predictor = Predictor(own_run.folder)
    paths = [predict_file(predictor, Request(path, "review"))["path"] for _ in range(7)]
    assert {str(file) for file in (own_run.folder / tables.PREDICTIONS).iterdir()} == set(paths[-5:])


@pytest.mark.parametrize(
    ("number", "sentence"), [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "Read-only file system")]
)
def test_predict_file_without_room_for_its_folder_raises_run_error(
    number: int, sentence: str, own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, path = Predictor(own_run.folder), file_of(own_run, tmp_path)

    def refuse(folder: Path, **_: Any) -> None:
        raise OSError(number, os.strerror(number), str(folder))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=sentence) as refusal:
        predict_file(predictor, Request(path, "review"))
    assert str(tmp_path) not in str(refusal.value)
