"""Labelled text: what is read, how it is sampled, held out and cut, and the sentence for bad data."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_csv
from datasets import load_dataset
from tiny import YELP_LABELS, make_yelp_parquet
from transformers import AutoTokenizer

from peft_core.config import TrainConfig
from peft_core.data import (
    LabelledText,
    check_dataset_name,
    encode,
    expected_num_labels,
    load_labelled_text,
)
from peft_core.errors import DataError, PeftCoreError
from peft_core.presets import embedded_model_folder

FOUR = [("Good food.", "yes"), ("Bad food.", "no"), ("Good room.", "yes"), ("Bad room.", "no")]


def load(folder: Path | str, **settings: Any) -> LabelledText:
    return load_labelled_text(TrainConfig.from_dict({"dataset_name": str(folder), **settings}))


def rows_of(found: LabelledText) -> tuple[list, list]:
    return found.train.to_list(), found.eval.to_list()


def test_embedded_sentences_by_default() -> None:
    found = load_labelled_text(TrainConfig())
    assert found.label_names == ("negative", "positive")
    assert (len(found.train), len(found.eval)) == (3000, 1000)
    for rows in (found.train, found.eval):
        assert 0.4 < sum(rows["label"][:]) / len(rows) < 0.6
    assert not set(found.train["text"][:]) & set(found.eval["text"][:])
    assert rows_of(load_labelled_text(TrainConfig())) == rows_of(found)


def test_another_seed_takes_other_rows_and_holds_out_the_same() -> None:
    everything = {"max_train_samples": 10_000, "max_eval_samples": 10_000}
    one, other = (load("rotten_tomatoes", seed=seed, **everything) for seed in (1, 2))
    assert len(one.train) + len(one.eval) == 8_530
    assert one.train["text"][:] != other.train["text"][:]
    assert set(one.eval["text"][:]) == set(other.eval["text"][:])


def test_embedded_long_reviews() -> None:
    found = load("imdb", max_train_samples=500, max_eval_samples=100)
    assert (len(found.train), len(found.eval)) == (500, 100)
    assert sum(len(text.split()) for text in found.train["text"][:]) > 500 * 100


def test_sampling_is_the_articles(tmp_path: Path) -> None:
    folder = make_yelp_parquet(tmp_path / "yelp")
    found = load(folder, max_train_samples=30, max_eval_samples=20, seed=42)
    splits = load_dataset(str(folder))
    for rows, name, count in ((found.train, "train", 30), (found.eval, "test", 20)):
        wanted = splits[name].shuffle(seed=42).select(range(count))
        assert rows["text"][:] == wanted["text"][:]
        assert rows["label"][:] == wanted["label"][:]
    assert found.label_names == tuple(YELP_LABELS)
    assert found.named


def test_csv_folder_with_named_labels(tiny_data: Path) -> None:
    found = load(tiny_data)
    assert (found.label_names, found.named) == (("bad", "good"), True)
    assert (len(found.train), len(found.eval)) == (160, 40)
    assert found.train.column_names == ["text", "label"]
    assert expected_num_labels(TrainConfig(dataset_name=str(tiny_data))) == 2


def test_bare_numbers_keep_their_order(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_csv(
            tmp_path / f"{split}.csv", [(f"{split} text {i}", stars) for i, stars in enumerate([10, 9, 2])]
        )
    found = load(tmp_path)
    assert (found.label_names, found.named) == (("2", "9", "10"), False)
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
    assert len(found.train) + len(found.eval) == 200
    assert not set(found.train["text"][:]) & set(found.eval["text"][:])
    assert 0.1 < len(found.eval) / 200 < 0.3


@pytest.mark.parametrize(
    "train, test, words",
    [
        ([], FOUR, "no rows"),
        (FOUR, [], "no rows"),
        ([(text, "yes") for text, _ in FOUR], [("Good.", "yes")], "'yes'; a classifier needs two or more"),
        (FOUR, [("Good food.", "yes")], "None of the 1 evaluation rows has the label 'no'"),
        (FOUR, [("Good food.", "maybe")], "'maybe', which no training row has"),
        ([*FOUR, ("", "yes")], FOUR, "1 of 5 rows .* no text or no label"),
        ([*FOUR, ("  ", "yes")], FOUR, "1 of 5 rows .* no text or no label"),
        ([*FOUR, ("Fine.", "")], FOUR, "1 of 5 rows .* no text or no label"),
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


def test_a_column_of_lists_gets_one_sentence(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"Text {i}", "label": [i % 2]}) + "\n" for i in range(20))
    (tmp_path / "train.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(DataError):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["./nowhere", "/nowhere/at/all", "~nobody-here/it", "/" + "a" * 300, "a" * 300, "a\0b", "/a\0b", "a b"],
)
def test_a_data_set_that_is_nowhere_gets_one_sentence(name: str) -> None:
    config = TrainConfig(dataset_name=name)
    for ask in (check_dataset_name, expected_num_labels, load_labelled_text):
        with pytest.raises(PeftCoreError) as error:
            ask(config)
        assert "\n" not in str(error.value)


def test_an_empty_folder_and_a_broken_file_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CSV, JSON or Parquet"):
        load(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match="CSV, JSON or Parquet"):
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
