"""Labelled text: what is read, how it is sampled, held out and cut, and the sentence for bad data."""

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


def rows_of(found: LabeledSplits) -> tuple[list, list]:
    return found.train.to_list(), found.eval.to_list()


def test_embedded_sentences_by_default() -> None:
    found = load_labeled_splits(TrainConfig())
    assert found.label_names == ("negative", "positive")
    assert (len(found.train), len(found.eval)) == (3000, 1000)
    for rows in (found.train, found.eval):
        assert 0.4 < sum(rows["label"][:]) / len(rows) < 0.6
    assert not set(found.train["text"][:]) & set(found.eval["text"][:])
    assert rows_of(load_labeled_splits(TrainConfig())) == rows_of(found)


def test_another_seed_takes_other_rows_and_holds_out_the_same() -> None:
    everything = {"max_train_samples": 10_000, "max_eval_samples": 10_000}
    one, other = (load("rotten_tomatoes", seed=seed, **everything) for seed in (1, 2))
    assert (len(one.train) + len(one.validation), len(one.eval)) == (6_832, 1_698)
    assert len(one.validation) == pytest.approx(683, abs=2)
    assert one.train["text"][:] != other.train["text"][:]
    assert set(one.eval["text"][:]) == set(other.eval["text"][:])


def test_embedded_long_reviews() -> None:
    found = load("imdb", max_train_samples=500, max_eval_samples=100)
    assert (len(found.train), len(found.eval)) == (500, 100)
    assert sum(len(text.split()) for text in found.train["text"][:]) > 500 * 100


@pytest.mark.parametrize("preset", [False, True])
def test_sampling_is_the_articles(tmp_path: Path, preset: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_yelp_parquet(tmp_path / "yelp")
    if preset:
        monkeypatch.setitem(DATASETS, str(folder), DatasetPreset("Yelp", tuple(YELP_LABELS), 50))
    found = load(folder, max_train_samples=30, max_eval_samples=20, seed=42)
    splits = load_dataset(str(folder))
    held = set(found.validation["text"][:])
    assert len(held) == (20 if preset else 10), "a preset's are of those that are not sampled"
    assert preset or not held & set(splits["test"]["text"][:])
    if not preset:
        splits["train"] = splits["train"].filter(lambda row: row["text"] not in held)
    for rows, name, count in ((found.train, "train", 30), (found.eval, "test", 20)):
        wanted = splits[name].shuffle(seed=42).select(range(count))
        assert rows["text"][:] == wanted["text"][:]
        assert rows["label"][:] == wanted["label"][:]
    assert found.label_names == tuple(YELP_LABELS)
    assert found.has_label_names


def test_csv_folder_with_named_labels(tiny_data: Path) -> None:
    found = load(tiny_data)
    assert (found.label_names, found.has_label_names) == (("bad", "good"), True)
    assert (len(found.train), len(found.validation), len(found.eval)) == (160, 20, 40)
    assert found.train.column_names == ["text", "label"]
    assert expected_num_labels(TrainConfig(dataset_name=str(tiny_data))) == 2


def test_bare_numbers_keep_their_order(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_csv(
            tmp_path / f"{split}.csv", [(f"{split} text {i}", stars) for i, stars in enumerate([10, 9, 2])]
        )
    found = load(tmp_path)
    assert (found.label_names, found.has_label_names) == (("2", "9", "10"), False)
    by_text = dict(zip(found.train["text"][:], found.train["label"][:], strict=True))
    assert by_text == {"train text 0": 2, "train text 1": 1, "train text 2": 0}


def test_json_and_parquet_folders_and_guessed_columns(tmp_path: Path) -> None:
    rows = [{"id": i, "review": text, "sentiment": label} for i, (text, label) in enumerate(FOUR)]
    (tmp_path / "json").mkdir()
    (tmp_path / "parquet").mkdir()
    for split in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "json" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / f"{split}.parquet")
    for kind in ("json", "parquet"):
        found = load(tmp_path / kind)
        assert sorted(found.train["text"][:]) == sorted(text for text, _ in FOUR)
        assert found.label_names == ("no", "yes")


def test_columns_can_be_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", FOUR, ("words", "verdict"))
    write_csv(tmp_path / "test.csv", FOUR, ("words", "verdict"))
    found = load(tmp_path, text_column="words", label_column="verdict")
    assert found.label_names == ("no", "yes")


def test_words_that_pandas_reads_as_missing_are_words(tmp_path: Path) -> None:
    rows = [("null", "None"), ("NA", "some"), ("nan", "None"), ("A word.", "some")]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "test.csv", rows)
    found = load(tmp_path)
    assert sorted(found.train["text"][:]) == ["A word.", "NA", "nan", "null"]
    assert found.label_names == ("None", "some")


def test_rows_are_held_out_by_their_text_where_no_split_is_given(tmp_path: Path) -> None:
    rows = [(f"Text number {i // 2}.", ["yes", "no"][i // 2 % 2]) for i in range(200)]
    write_csv(tmp_path / "train.csv", rows)
    found = load(tmp_path)
    sides = [found.train, found.validation, found.eval]
    assert [len(side) for side in sides] == [140, 20, 40]
    texts = [set(side["text"][:]) for side in sides]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    for side in sides:
        assert sum(side["label"][:]) == pytest.approx(len(side) / 2, abs=1)
    again = load(tmp_path, seed=7)
    assert set(again.eval["text"][:]) == texts[2] and set(again.validation["text"][:]) == texts[1]
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
def test_bad_rows_get_one_sentence(tmp_path: Path, train: list, test: list, words: str) -> None:
    write_csv(tmp_path / "train.csv", train)
    write_csv(tmp_path / "test.csv", test)
    with pytest.raises(DataError, match=words) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_changed_file_is_read_anew_and_a_namesake_is_another_folder(tmp_path: Path) -> None:
    one, two = (make_yelp_parquet(tmp_path / name / "yelp") for name in ("one", "two"))
    reviews = load(one).eval["text"][:]
    path = next(two.rglob("test-*.parquet"))
    table = pq.read_table(path)
    texts = pa.array([f"Changed {i}" for i in range(len(table))])
    pq.write_table(table.set_column(1, table.schema.field("text"), texts), path)
    assert load(one).eval["text"][:] == reviews
    assert load(two).eval["text"][0].startswith("Changed")


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
def test_settings_that_do_not_fit_the_data(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    write_csv(tmp_path / "train.csv", FOUR)
    write_csv(tmp_path / "test.csv", FOUR)
    with pytest.raises(DataError, match=words):
        load(tmp_path, **settings)


def test_hidden_labels_get_one_sentence(tmp_path: Path) -> None:
    folder = make_yelp_parquet(tmp_path / "yelp")
    path = next(folder.rglob("test-*.parquet"))
    table = pq.read_table(path)
    hidden = pa.array([-1] * len(table), pa.int64())
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", hidden), path)
    with pytest.raises(DataError, match="hidden"):
        load(folder)


def test_a_column_that_is_no_text_gets_one_sentence(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(i, "yes") for i in range(4)])
    with pytest.raises(DataError):
        load(tmp_path, text_column="text")


def test_a_column_of_lists_is_several_labels(tmp_path: Path) -> None:
    rows = [
        {"text": f"Text {i}", "label": [name for name in "abc" if i % 7 > "abc".index(name)]}
        for i in range(60)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = load(tmp_path)
    assert (found.problem_type, found.label_names, found.num_labels) == (
        "multi_label_classification", ("a", "b", "c"), 3,
    )  # fmt: skip
    by_text = dict(zip(found.train["text"][:], found.train["label"][:], strict=True))
    for row in rows:
        expected = [float(name in row["label"]) for name in "abc"]
        assert by_text.get(row["text"], expected) == expected


def test_numbers_are_learned_as_numbers_when_asked(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(f"Text {i}", i % 5 + 1) for i in range(100)])
    stars = load(tmp_path)
    assert (stars.problem_type, stars.label_names) == ("single_label_classification", tuple("12345"))
    numbers = load(tmp_path, problem_type="regression")
    assert (numbers.label_names, numbers.num_labels) == ((), 1)
    assert sorted(numbers.eval["label"][:]) == [float(i) for i in range(1, 6) for _ in range(4)]
    config = {"dataset_name": str(tmp_path), "problem_type": "regression"}
    assert expected_num_labels(TrainConfig.from_dict(config)) == 1
    write_csv(tmp_path / "train.csv", [*[(f"Text {i}", i) for i in range(30)], ("Bad", "much")])
    with pytest.raises(DataError, match="'train.csv', row 32, column 'label' holds 'much', .* no number"):
        load(tmp_path, problem_type="regression")


def test_labels_are_kept_as_typed(tmp_path: Path) -> None:
    labels = ["01", " sehr gut ", "null", "Ünï ☂"]
    write_csv(tmp_path / "train.csv", [(f"Text {i}", labels[i % 4]) for i in range(80)])
    found = load(tmp_path / "train.csv")
    assert found.label_names == tuple(sorted(labels)) and found.has_label_names


def test_remedies_leave_out_and_record(tmp_path: Path) -> None:
    rows = [(f"Text {i}", ["yes", "no"][i % 2]) for i in range(100)]
    bad = [("", "yes"), ("TEXT 1", "no"), ("text 2", "no"), ("Once", "maybe")]
    write_csv(tmp_path / "all.csv", [*rows, *bad])
    with pytest.raises(DataError, match="row 102, column 'text'"):
        load(tmp_path / "all.csv")
    with pytest.raises(DataError, match="'maybe' has too few rows .* “Leave out labels"):
        load(tmp_path / "all.csv", remedies=["empty"])
    found = load(tmp_path / "all.csv", remedies=["empty", "duplicates", "conflicts", "small_classes"])
    assert found.label_names == ("no", "yes")
    dropped = {one["remedy"]: (one["rows"], one["labels"]) for one in found.record["dropped"]}
    assert dropped == {
        "empty": (1, []), "conflicts": (2, []), "duplicates": (1, []), "small_classes": (1, ["maybe"]),
    }  # fmt: skip
    assert sum(found.record["used"].values()) == 99
    assert json.loads(json.dumps(found.record)) == found.record
    assert found.record["files"][0]["rows"] == 104
    assert found.record["columns"]["text_column"] == "text"
    assert found.record["held_out"] == ["test", "validation"]


def test_validation_rows_of_an_embedded_set_are_spare_ones() -> None:
    found = load("rotten_tomatoes", max_train_samples=2000)
    sides = [
        {text_key(text) for text in side["text"][:]} for side in (found.train, found.validation, found.eval)
    ]
    assert len(found.validation) == 1000 and len(found.train) == 2000
    assert not sides[0] & sides[1] and not sides[1] & sides[2]
    assert sum(found.validation["label"][:]) == pytest.approx(500, abs=20)


def test_files_are_splits_by_their_names(tmp_path: Path) -> None:
    names = {"reviews_train.csv": 40, "reviews-dev.csv": 10, "Reviews Test.csv": 20}
    for name, count in names.items():
        write_csv(tmp_path / name, [(f"{name} {i}", ["yes", "no"][i % 2]) for i in range(count)])
    found = load(tmp_path)
    assert (len(found.train), len(found.validation), len(found.eval)) == (40, 10, 20)
    assert found.record["held_out"] == []
    write_csv(tmp_path / "notes.csv", FOUR)
    with pytest.raises(DataError, match="'notes.csv' does not say which split"):
        load(tmp_path)


def test_two_files_of_one_split_need_the_same_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "one.csv", [(f"One {i}", ["yes", "no"][i % 2]) for i in range(20)])
    write_csv(tmp_path / "two.csv", [(f"Two {i}", ["yes", "no"][i % 2]) for i in range(20)])
    found = load(tmp_path)
    assert sum(found.record["used"].values()) == 40
    write_csv(tmp_path / "two.csv", FOUR, ("words", "label"))
    with pytest.raises(DataError, match="'one.csv' and 'two.csv' have different columns"):
        load(tmp_path)


def test_pairs_are_one_input(tmp_path: Path) -> None:
    rows = [{"premise": f"It is {i}", "hypothesis": f"Is it {i}", "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = load(tmp_path)
    assert found.train.column_names == ["text", "text_pair", "label"]
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
    ids = encode(found.train, tokenizer, 32)["input_ids"][0]
    words = tokenizer(found.train["text"][0], found.train["text_pair"][0])["input_ids"]
    assert ids == words and ids.count(tokenizer.sep_token_id) == 2


def test_a_rare_label_may_be_missing_from_the_sampled_test_rows_alone(tmp_path: Path) -> None:
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
def test_a_data_set_that_is_nowhere_gets_one_sentence(name: str) -> None:
    config = TrainConfig(dataset_name=name)
    for ask in (check_dataset_name, expected_num_labels, load_labeled_splits):
        with pytest.raises(PeftCoreError) as error:
            ask(config)
        assert "\n" not in str(error.value)


def test_an_empty_folder_and_a_broken_file_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CSV, JSON or Parquet"):
        load(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match="'train.parquet' is a damaged Parquet file"):
        load(tmp_path)


def test_encoding_cuts_a_giant_cell_before_it_is_tokenised(tmp_path: Path) -> None:
    giant = "word " * 2_000_000
    rows = [(giant, "yes"), ("😀" * 1000, "no"), ("Short.", "yes")]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "test.csv", rows)
    found = load(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder())
    start = time.perf_counter()
    encoded = encode(found.train, tokenizer, 16)
    assert time.perf_counter() - start < 5
    assert sorted(len(ids) for ids in encoded["input_ids"])[-1] == 16
    assert set(encoded.column_names) == {"input_ids", "attention_mask", "labels"} | (
        {"token_type_ids"} & set(encoded.column_names)
    )


def test_the_curve_is_of_the_validation_rows_and_the_result_of_the_test_rows(
    tiny_data: Path, train_here: Callable[..., Run], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_data, tmp_path / "turned")
    text = (folder / "validation.csv").read_text(encoding="utf-8")
    turned = text.replace(",good", ",?").replace(",bad", ",good").replace(",?", ",bad")
    (folder / "validation.csv").write_text(turned, encoding="utf-8")
    run = train_here(dataset_name=str(folder), load_best_model_at_end=False)
    curve = [row["eval_accuracy"] for row in run.metrics() if "eval_accuracy" in row]
    assert run.result()["accuracy"] > 0.9
    assert curve[-1] < 0.2, "the rows with turned labels draw the curve"
    assert run.result()["data"]["used"] == {"train": 160, "validation": 20, "test": 40}


def test_rows_too_few_for_a_curve_are_trained_on_without(
    train_here: Callable[..., Run], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        write_csv(tmp_path / "few" / f"{split}.csv", FOUR)
    run = train_here(dataset_name=str(tmp_path / "few"), num_train_epochs=2)
    assert run.state().status == "FINISHED"
    assert run.result()["data"]["used"] == {"train": 4, "validation": 0, "test": 4}
