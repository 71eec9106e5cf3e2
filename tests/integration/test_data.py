"""Labeled text data: reading, sampling, splitting, truncation and error messages."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from small_data import write_csv
from tiny import YELP_LABELS, make_yelp_parquet
from transformers import AutoTokenizer

from peft_core.config import TrainConfig
from peft_core.data.labelled import (
    LabeledSplits,
    check_dataset_name,
    expected_num_labels,
    load_labeled_splits,
)
from peft_core.data.text_keys import text_key
from peft_core.data.tokens import encode
from peft_core.errors import DataError, PeftCoreError
from peft_core.models.presets import DATASETS, DatasetPreset, embedded_model_folder
from peft_core.runs import Run

FOUR = [("Good food.", "yes"), ("Bad food.", "no"), ("Good room.", "yes"), ("Bad room.", "no")]


def load(folder: Path | str, **settings: Any) -> LabeledSplits:
    return load_labeled_splits(TrainConfig.from_dict({"dataset_name": str(folder), **settings}))


def rows_of(splits: LabeledSplits) -> tuple[list, list]:
    return splits.train.to_list(), splits.eval.to_list()


def test_load_default_config_reads_embedded_sentences() -> None:
    splits = load_labeled_splits(TrainConfig())
    assert splits.label_names == ("negative", "positive")
    assert (len(splits.train), len(splits.eval)) == (3000, 1000)
    for rows in (splits.train, splits.eval):
        assert 0.4 < sum(rows["label"][:]) / len(rows) < 0.6
    assert not set(splits.train["text"][:]) & set(splits.eval["text"][:])
    assert rows_of(load_labeled_splits(TrainConfig())) == rows_of(splits)


def test_load_other_seed_samples_other_training_rows_and_same_test_rows() -> None:
    everything = {"max_train_samples": 10_000, "max_eval_samples": 10_000}
    first, second = (load("rotten_tomatoes", seed=seed, **everything) for seed in (1, 2))
    assert (len(first.train) + len(first.validation), len(first.eval)) == (6_832, 1_698)
    assert len(first.validation) == pytest.approx(683, abs=2)
    assert first.train["text"][:] != second.train["text"][:]
    assert set(first.eval["text"][:]) == set(second.eval["text"][:])


def test_load_imdb_reads_long_embedded_reviews() -> None:
    splits = load("imdb", max_train_samples=500, max_eval_samples=100)
    assert (len(splits.train), len(splits.eval)) == (500, 100)
    assert sum(len(text.split()) for text in splits.train["text"][:]) > 500 * 100


@pytest.mark.parametrize("preset", [False, True])
def test_load_sampling_matches_datasets_shuffle(
    tmp_path: Path, preset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_yelp_parquet(tmp_path / "yelp")
    if preset:
        monkeypatch.setitem(DATASETS, str(folder), DatasetPreset("Yelp", tuple(YELP_LABELS), 50))
    splits = load(folder, max_train_samples=30, max_eval_samples=20, seed=42)
    dataset = load_dataset(str(folder))
    validation_texts = set(splits.validation["text"][:])
    assert len(validation_texts) == (20 if preset else 10), (
        "validation rows of a preset are taken from rows that are not sampled"
    )
    assert preset or not validation_texts & set(dataset["test"]["text"][:])
    if not preset:
        dataset["train"] = dataset["train"].filter(lambda row: row["text"] not in validation_texts)
    for rows, name, count in ((splits.train, "train", 30), (splits.eval, "test", 20)):
        expected = dataset[name].shuffle(seed=42).select(range(count))
        assert rows["text"][:] == expected["text"][:]
        assert rows["label"][:] == expected["label"][:]
    assert splits.label_names == tuple(YELP_LABELS)
    assert splits.has_label_names


def test_load_csv_folder_keeps_label_names(tiny_data: Path) -> None:
    splits = load(tiny_data)
    assert (splits.label_names, splits.has_label_names) == (("bad", "good"), True)
    assert (len(splits.train), len(splits.validation), len(splits.eval)) == (160, 20, 40)
    assert splits.train.column_names == ["text", "label"]
    assert expected_num_labels(TrainConfig(dataset_name=str(tiny_data))) == 2


def test_load_number_labels_are_sorted_by_value(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_csv(
            tmp_path / f"{split}.csv", [(f"{split} text {i}", stars) for i, stars in enumerate([10, 9, 2])]
        )
    splits = load(tmp_path)
    assert (splits.label_names, splits.has_label_names) == (("2", "9", "10"), False)
    by_text = dict(zip(splits.train["text"][:], splits.train["label"][:], strict=True))
    assert by_text == {"train text 0": 2, "train text 1": 1, "train text 2": 0}


def test_load_json_and_parquet_folders_infers_columns(tmp_path: Path) -> None:
    rows = [{"id": i, "review": text, "sentiment": label} for i, (text, label) in enumerate(FOUR)]
    (tmp_path / "json").mkdir()
    (tmp_path / "parquet").mkdir()
    for split in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "json" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / f"{split}.parquet")
    for kind in ("json", "parquet"):
        splits = load(tmp_path / kind)
        assert sorted(splits.train["text"][:]) == sorted(text for text, _ in FOUR)
        assert splits.label_names == ("no", "yes")


def test_load_column_settings_select_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", FOUR, ("words", "verdict"))
    write_csv(tmp_path / "test.csv", FOUR, ("words", "verdict"))
    splits = load(tmp_path, text_column="words", label_column="verdict")
    assert splits.label_names == ("no", "yes")


def test_load_keeps_words_that_pandas_reads_as_missing(tmp_path: Path) -> None:
    rows = [("null", "None"), ("NA", "some"), ("nan", "None"), ("A word.", "some")]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "test.csv", rows)
    splits = load(tmp_path)
    assert sorted(splits.train["text"][:]) == ["A word.", "NA", "nan", "null"]
    assert splits.label_names == ("None", "some")


def test_load_without_test_split_splits_rows_by_text(tmp_path: Path) -> None:
    rows = [(f"Text number {i // 2}.", ["yes", "no"][i // 2 % 2]) for i in range(200)]
    write_csv(tmp_path / "train.csv", rows)
    splits = load(tmp_path)
    parts = [splits.train, splits.validation, splits.eval]
    assert [len(part) for part in parts] == [140, 20, 40]
    texts = [set(part["text"][:]) for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    for part in parts:
        assert sum(part["label"][:]) == pytest.approx(len(part) / 2, abs=1)
    reseeded = load(tmp_path, seed=7)
    assert set(reseeded.eval["text"][:]) == texts[2] and set(reseeded.validation["text"][:]) == texts[1]
    assert set(load(tmp_path, split_seed=7).eval["text"][:]) != texts[2]


@pytest.mark.parametrize(
    "train, test, words",
    [
        ([], FOUR, "no rows"),
        (FOUR, [], "no rows"),
        ([(text, "yes") for text, _ in FOUR], [("Good.", "yes")], "'yes'; a classifier needs two or more"),
        (FOUR, [("Good food.", "yes")], "None of the 1 evaluation rows has the label 'no'"),
        (FOUR, [("Good food.", "maybe")], "'maybe' has no training row"),
        ([*FOUR, ("", "yes")], FOUR, "'train.csv', row 6, column 'text' is empty; .* “Leave out rows"),
        ([*FOUR, ("  ", "yes")], FOUR, "'train.csv', row 6, column 'text' is empty"),
        ([*FOUR, ("Fine.", ""), ("", "")], FOUR, "'train.csv', row 6, column 'label' .*2 such rows"),
    ],
)
def test_load_bad_rows_raises_one_line_error(tmp_path: Path, train: list, test: list, words: str) -> None:
    write_csv(tmp_path / "train.csv", train)
    write_csv(tmp_path / "test.csv", test)
    with pytest.raises(DataError, match=words) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_load_folders_of_same_name_are_read_separately(tmp_path: Path) -> None:
    first, second = (make_yelp_parquet(tmp_path / name / "yelp") for name in ("one", "two"))
    reviews = load(first).eval["text"][:]
    path = next(second.rglob("test-*.parquet"))
    table = pq.read_table(path)
    texts = pa.array([f"Changed {i}" for i in range(len(table))])
    pq.write_table(table.set_column(1, table.schema.field("text"), texts), path)
    assert load(first).eval["text"][:] == reviews
    assert load(second).eval["text"][0].startswith("Changed")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"train_split": "training"}, "no split 'training'; it has train, test"),
        ({"text_column": "words"}, "no text_column words; it has text, label"),
        ({"label_column": "stars"}, "no label_column stars; it has text, label"),
        ({"num_labels": 5}, "num_labels is 5, but the data has 2: no, yes"),
        ({"max_train_samples": 1}, "needs two or more"),
        ({"max_eval_samples": 1}, "raise max_eval_samples"),
    ],
)
def test_load_settings_that_do_not_fit_the_data_raises(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    write_csv(tmp_path / "train.csv", FOUR)
    write_csv(tmp_path / "test.csv", FOUR)
    with pytest.raises(DataError, match=words):
        load(tmp_path, **settings)


def test_load_hidden_labels_raises(tmp_path: Path) -> None:
    folder = make_yelp_parquet(tmp_path / "yelp")
    path = next(folder.rglob("test-*.parquet"))
    table = pq.read_table(path)
    hidden = pa.array([-1] * len(table), pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", hidden), path)
    with pytest.raises(DataError, match="hidden"):
        load(folder)


def test_load_numeric_text_column_raises(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(i, "yes") for i in range(4)])
    with pytest.raises(DataError):
        load(tmp_path, text_column="text")


def test_load_list_column_is_multi_label(tmp_path: Path) -> None:
    rows = [
        {"text": f"Text {i}", "label": [name for name in "abc" if i % 7 > "abc".index(name)]}
        for i in range(60)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    splits = load(tmp_path)
    assert (splits.problem_type, splits.label_names, splits.num_labels) == (
        "multi_label_classification", ("a", "b", "c"), 3,
    )  # fmt: skip
    by_text = dict(zip(splits.train["text"][:], splits.train["label"][:], strict=True))
    for row in rows:
        expected = [float(name in row["label"]) for name in "abc"]
        assert by_text.get(row["text"], expected) == expected


def test_load_regression_reads_labels_as_numbers(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(f"Text {i}", i % 5 + 1) for i in range(100)])
    stars = load(tmp_path)
    assert (stars.problem_type, stars.label_names) == ("single_label_classification", tuple("12345"))
    numbers = load(tmp_path, problem_type="regression")
    assert (numbers.label_names, numbers.num_labels) == ((), 1)
    assert sorted(numbers.eval["label"][:]) == [float(i) for i in range(1, 6) for _ in range(4)]
    config = {"dataset_name": str(tmp_path), "problem_type": "regression"}
    assert expected_num_labels(TrainConfig.from_dict(config)) == 1
    write_csv(tmp_path / "train.csv", [*[(f"Text {i}", i) for i in range(30)], ("Bad", "much")])
    with pytest.raises(DataError, match="'train.csv', row 32, column 'label' holds 'much', .* not a number"):
        load(tmp_path, problem_type="regression")


def test_load_keeps_labels_verbatim(tmp_path: Path) -> None:
    labels = ["01", " sehr gut ", "null", "Ünï ☂"]
    write_csv(tmp_path / "train.csv", [(f"Text {i}", labels[i % 4]) for i in range(80)])
    splits = load(tmp_path / "train.csv")
    assert splits.label_names == tuple(sorted(labels)) and splits.has_label_names


def test_load_remedies_drop_rows_and_record_them(tmp_path: Path) -> None:
    rows = [(f"Text {i}", ["yes", "no"][i % 2]) for i in range(100)]
    bad = [("", "yes"), ("TEXT 1", "no"), ("text 2", "no"), ("Once", "maybe")]
    write_csv(tmp_path / "all.csv", [*rows, *bad])
    with pytest.raises(DataError, match="row 102, column 'text'"):
        load(tmp_path / "all.csv")
    with pytest.raises(DataError, match="'maybe' has too few rows .* “Leave out labels"):
        load(tmp_path / "all.csv", remedies=["empty"])
    splits = load(tmp_path / "all.csv", remedies=["empty", "duplicates", "conflicts", "small_classes"])
    assert splits.label_names == ("no", "yes")
    dropped = {entry["remedy"]: (entry["rows"], entry["labels"]) for entry in splits.record["dropped"]}
    assert dropped == {
        "empty": (1, []), "conflicts": (2, []), "duplicates": (1, []), "small_classes": (1, ["maybe"]),
    }  # fmt: skip
    assert sum(splits.record["used"].values()) == 99
    assert json.loads(json.dumps(splits.record)) == splits.record
    assert splits.record["files"][0]["rows"] == 104
    assert splits.record["columns"]["text_column"] == "text"
    assert splits.record["held_out"] == ["test", "validation"]


def test_load_embedded_dataset_validation_rows_are_disjoint() -> None:
    splits = load("rotten_tomatoes", max_train_samples=2000)
    parts = [
        {text_key(text) for text in part["text"][:]}
        for part in (splits.train, splits.validation, splits.eval)
    ]
    assert len(splits.validation) == 1000 and len(splits.train) == 2000
    assert not parts[0] & parts[1] and not parts[1] & parts[2]
    assert sum(splits.validation["label"][:]) == pytest.approx(500, abs=20)


def test_load_folder_infers_splits_from_file_names(tmp_path: Path) -> None:
    names = {"reviews_train.csv": 40, "reviews-dev.csv": 10, "Reviews Test.csv": 20}
    for name, count in names.items():
        write_csv(tmp_path / name, [(f"{name} {i}", ["yes", "no"][i % 2]) for i in range(count)])
    splits = load(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.eval)) == (40, 10, 20)
    assert splits.record["held_out"] == []
    write_csv(tmp_path / "notes.csv", FOUR)
    with pytest.raises(DataError, match="'notes.csv' does not say which split"):
        load(tmp_path)


def test_load_two_files_of_one_split_require_same_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "one.csv", [(f"One {i}", ["yes", "no"][i % 2]) for i in range(20)])
    write_csv(tmp_path / "two.csv", [(f"Two {i}", ["yes", "no"][i % 2]) for i in range(20)])
    splits = load(tmp_path)
    assert sum(splits.record["used"].values()) == 40
    write_csv(tmp_path / "two.csv", FOUR, ("words", "label"))
    with pytest.raises(DataError, match="'one.csv' and 'two.csv' have different columns"):
        load(tmp_path)


def test_encode_text_pairs_form_one_input(tmp_path: Path) -> None:
    rows = [{"premise": f"It is {i}", "hypothesis": f"Is it {i}", "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    splits = load(tmp_path)
    assert splits.train.column_names == ["text", "text_pair", "label"]
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
    ids = encode(splits.train, tokenizer, 32)["input_ids"][0]
    words = tokenizer(splits.train["text"][0], splits.train["text_pair"][0])["input_ids"]
    assert ids == words and ids.count(tokenizer.sep_token_id) == 2


def test_load_rare_label_may_be_missing_from_test_rows_only(tmp_path: Path) -> None:
    rows = [(f"Text {i}", "yes" if i % 2 else "no") for i in range(200)] + [
        (f"Rare {i}", "rare") for i in range(3)
    ]
    write_csv(tmp_path / "train.csv", rows)
    assert load(tmp_path, max_eval_samples=10).label_names == ("no", "rare", "yes")
    with pytest.raises(DataError, match="training rows has the label 'rare'; raise max_train_samples"):
        load(tmp_path, max_train_samples=10)


@pytest.mark.parametrize(
    "name",
    ["./nowhere", "/nowhere/at/all", "~nobody-here/it", "/" + "a" * 300, "a" * 300, "a\0b", "/a\0b", "a b"],
)
def test_load_missing_dataset_raises_one_line_error(name: str) -> None:
    config = TrainConfig(dataset_name=name)
    for read in (check_dataset_name, expected_num_labels, load_labeled_splits):
        with pytest.raises(PeftCoreError) as error:
            read(config)
        assert "\n" not in str(error.value)


def test_load_empty_folder_or_damaged_file_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CSV, JSON or Parquet"):
        load(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match="'train.parquet' is a damaged Parquet file"):
        load(tmp_path)


def test_encode_giant_cell_is_truncated_before_tokenization(tmp_path: Path) -> None:
    giant = "word " * 2_000_000
    rows = [(giant, "yes"), ("😀" * 1000, "no"), ("Short.", "yes")]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "test.csv", rows)
    splits = load(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
    start = time.perf_counter()
    encoded = encode(splits.train, tokenizer, 16)
    assert time.perf_counter() - start < 5
    assert sorted(len(ids) for ids in encoded["input_ids"])[-1] == 16
    assert set(encoded.column_names) == {"input_ids", "attention_mask", "labels"} | (
        {"token_type_ids"} & set(encoded.column_names)
    )


def test_train_curve_uses_validation_rows_and_result_uses_test_rows(
    tiny_data: Path, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_data, tmp_path / "turned")
    text = (folder / "validation.csv").read_text(encoding="utf-8")
    swapped = text.replace(",good", ",?").replace(",bad", ",good").replace(",?", ",bad")
    (folder / "validation.csv").write_text(swapped, encoding="utf-8")
    run = train_here(dataset_name=str(folder), load_best_model_at_end=False)
    curve = [row["eval_accuracy"] for row in run.metrics() if "eval_accuracy" in row]
    assert run.result()["accuracy"] > 0.9
    assert curve[-1] < 0.2, "the curve uses the rows with swapped labels"
    assert run.result()["data"]["used"] == {"train": 160, "validation": 20, "test": 40}


def test_train_few_rows_finishes_without_validation_rows(
    train_here: Callable[..., Run], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        write_csv(tmp_path / "few" / f"{split}.csv", FOUR)
    run = train_here(dataset_name=str(tmp_path / "few"), num_train_epochs=2)
    assert run.state().status == "FINISHED"
    assert run.result()["data"]["used"] == {"train": 4, "validation": 0, "test": 4}
