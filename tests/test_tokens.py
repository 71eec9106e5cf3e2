"""Texts are tokenised once: what is read again by content is what was made."""

import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny import make_tiny_bert
from transformers import AutoTokenizer

from peft_core.data import tokens
from peft_core.data.tokens import encode

ROWS = {"text": ["good food", "bad staff " * 30, "the best pizza"], "label": [1, 0, 1]}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(make_tiny_bert(tmp_path / "model"))


def test_the_second_time_no_text_is_tokenised(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, rows = tmp_path / "tokens", Dataset.from_dict(ROWS)
    first = encode(rows, tokenizer, 16, cache)
    assert first[:] == encode(rows, tokenizer, 16)[:]
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenised again"))
    assert encode(Dataset.from_dict(ROWS), tokenizer, 16, cache)[:] == first[:]


def test_other_texts_labels_lengths_and_tokenizers_are_others(tokenizer: Any, tmp_path: Path) -> None:
    cache, rows = tmp_path / "tokens", Dataset.from_dict(ROWS)
    encode(rows, tokenizer, 16, cache)
    cased = AutoTokenizer.from_pretrained(make_tiny_bert(tmp_path / "other", num_labels=2))
    cased.backend_tokenizer.normalizer = None
    for changed, by, length in (
        (Dataset.from_dict({**ROWS, "text": ["good food", "bad", "the best pizza"]}), tokenizer, 16),
        (Dataset.from_dict({**ROWS, "label": [1, 1, 1]}), tokenizer, 16),
        (rows, tokenizer, 8),
        (rows, cased, 16),
    ):
        kept = len(list(cache.glob("*.arrow")))
        assert encode(changed, by, length, cache)[:] == encode(changed, by, length)[:]
        assert len(list(cache.glob("*.arrow"))) == kept + 1


def test_a_damaged_file_is_made_again(tokenizer: Any, tmp_path: Path) -> None:
    cache, rows = tmp_path / "tokens", Dataset.from_dict(ROWS)
    wanted = encode(rows, tokenizer, 16, cache)[:]
    (file,) = cache.glob("*.arrow")
    file.write_bytes(b"no arrow")
    assert encode(rows, tokenizer, 16, cache)[:] == wanted


@pytest.mark.parametrize("small_disk", [4], indirect=True)
def test_a_full_disk_keeps_nothing_and_takes_nothing_away(small_disk: Path, tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": ["good food " * 40] * 50, "label": [0] * 50})
    assert encode(rows, tokenizer, 64, small_disk / "tokens")[:] == encode(rows, tokenizer, 64)[:]
    assert not list((small_disk / "tokens").glob("*"))


def test_the_oldest_go_where_there_are_too_many(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "tokens"
    for i in range(3):
        before = set(cache.glob("*"))
        encode(Dataset.from_dict({"text": [f"text {i}"], "label": [i]}), tokenizer, 16, cache)
        (made,) = set(cache.glob("*")) - before
        os.utime(made, (i, i))
    size = made.stat().st_size
    monkeypatch.setattr(tokens, "CACHE_BYTES", int(2.5 * size))
    encode(Dataset.from_dict({"text": ["text 3"], "label": [3]}), tokenizer, 16, cache)
    left = list(cache.glob("*.arrow"))
    assert len(left) == 2 and made in left
