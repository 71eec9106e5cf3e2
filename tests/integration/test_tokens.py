"""The token cache: texts are tokenized once, and a damaged entry is never used."""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from processes import start_python
from tiny import make_tiny_bert
from transformers import AutoTokenizer

from peft_core.data import tokens
from peft_core.data.tokens import encode, rows_digest, tokenizer_digest
from peft_core.files.atomic import staging_path

ROWS = {"text": ["good food", "bad staff " * 30, "the best pizza"], "label": [1, 0, 1]}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(make_tiny_bert(tmp_path / "model"))


def test_encode_with_cache_entry_does_not_tokenize_again(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, rows = tmp_path / "tokens", Dataset.from_dict(ROWS)
    first = encode(rows, tokenizer, 16, cache)
    assert first[:] == encode(rows, tokenizer, 16)[:]
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenized again"))
    assert encode(Dataset.from_dict(ROWS), tokenizer, 16, cache)[:] == first[:]


def test_encode_with_other_inputs_adds_a_cache_entry(tokenizer: Any, tmp_path: Path) -> None:
    cache, rows = tmp_path / "tokens", Dataset.from_dict(ROWS)
    encode(rows, tokenizer, 16, cache)
    cased = AutoTokenizer.from_pretrained(make_tiny_bert(tmp_path / "other", num_labels=2))
    cased.backend_tokenizer.normalizer = None
    for changed, its_tokenizer, max_length in (
        (Dataset.from_dict({**ROWS, "text": ["good food", "bad", "the best pizza"]}), tokenizer, 16),
        (Dataset.from_dict({**ROWS, "label": [1, 1, 1]}), tokenizer, 16),
        (rows, tokenizer, 8),
        (rows, cased, 16),
    ):
        entries_before = len(list(cache.glob("*.arrow")))
        assert (
            encode(changed, its_tokenizer, max_length, cache)[:]
            == encode(changed, its_tokenizer, max_length)[:]
        )
        assert len(list(cache.glob("*.arrow"))) == entries_before + 1


def many_rows() -> Dataset:
    """Return more rows than one batch of an Arrow stream."""
    return Dataset.from_dict({"text": [f"good food {i}" for i in range(2500)], "label": [0, 1] * 1250})


def truncate_after_batches(path: Path, batches: int) -> None:
    """Leave only the first batches of the stream, as a writer that dies between two batches does."""
    data = path.read_bytes()
    reader = pa.ipc.open_stream(data)
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, reader.schema) as stream:
        for _ in range(batches):
            stream.write_batch(reader.read_next_batch())
    path.write_bytes(buffer.getvalue())


def flip_bit(path: Path, place: float) -> None:
    """Flip one bit at a share of the file."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 16
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "no arrow": lambda path: path.write_bytes(b"no arrow"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "cut after one batch": lambda path: truncate_after_batches(path, 1),
    "cut after two batches": lambda path: truncate_after_batches(path, 2),
    "cut in the middle": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its footer": lambda path: path.write_bytes(path.read_bytes()[:-52]),
    "one byte longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_encode_with_damaged_cache_entry_rewrites_it(
    damage: str, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, rows = tmp_path / "tokens", many_rows()
    expected = encode(rows, tokenizer, 16, cache)[:]
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    DAMAGE[damage](entry)
    assert encode(rows, tokenizer, 16, cache)[:] == expected
    assert ("tokenized again" in caplog.text) == (damage != "missing")
    if damage != "a folder":  # it stays, and every run tokenizes
        assert entry.read_bytes() == whole and list(cache.iterdir()) == [entry]


def test_encode_with_any_bit_of_cache_entry_flipped_rewrites_it(tokenizer: Any, tmp_path: Path) -> None:
    cache, rows = tmp_path / "tokens", Dataset.from_dict(ROWS)
    expected = encode(rows, tokenizer, 16, cache)[:]
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    for i in range(100):
        flip_bit(entry, i / 99)
        assert encode(rows, tokenizer, 16, cache)[:] == expected
        assert entry.read_bytes() == whole, f"flipped at {i} % of the file"


def test_encode_without_entry_check_reads_truncated_entry(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure that the check prevents: a run trained on 1,000 of its rows."""
    cache, rows = tmp_path / "tokens", many_rows()
    encode(rows, tokenizer, 16, cache)
    (entry,) = cache.iterdir()
    truncate_after_batches(entry, 1)
    monkeypatch.setattr(tokens, "read_entry", lambda path, rows: Dataset.from_file(str(path)))
    assert len(encode(rows, tokenizer, 16, cache)) == 1000


WRITE_AT_ONCE = """
import sys, time
from pathlib import Path
from datasets import Dataset
from transformers import AutoTokenizer
from peft_core.data.tokens import encode
model, cache = sys.argv[1], Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(model)
rows = Dataset.from_dict({"text": [f"good food {i}" for i in range(300)], "label": [0, 1] * 150})
(cache.parent / f"ready-{sys.argv[3]}").touch()
while len(list(cache.parent.glob("ready-*"))) < 2:
    time.sleep(0.001)
for _ in range(5):
    assert len(encode(rows, tokenizer, 16, cache)) == 300
    for path in cache.glob("*.arrow"):
        path.unlink(missing_ok=True)
encode(rows, tokenizer, 16, cache)
"""


def test_encode_in_two_processes_at_once_writes_complete_entry(tokenizer: Any, tmp_path: Path) -> None:
    cache = tmp_path / "tokens"
    arguments = ["-c", WRITE_AT_ONCE, str(tmp_path / "model"), str(cache)]
    others = [start_python(*arguments, str(number)) for number in range(2)]
    assert [process.wait(timeout=120) for process in others] == [0, 0]
    rows = Dataset.from_dict({"text": [f"good food {i}" for i in range(300)], "label": [0, 1] * 150})
    (entry,) = cache.iterdir()
    assert tokens.read_entry(entry, 300)[:] == encode(rows, tokenizer, 16)[:]


def test_encode_syncs_entry_before_its_rename_and_folder_after(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("folder synced" if is_folder else "file synced")
        fsync(descriptor)

    def recorded_replace(path: Path, target: Path) -> None:
        events.append("renamed")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    encode(Dataset.from_dict(ROWS), tokenizer, 16, tmp_path / "tokens")
    assert events == ["folder synced", "file synced", "renamed", "folder synced"], (
        "first that of a new folder"
    )


def test_encode_ignores_entry_that_another_process_is_writing(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The staging file ends in .arrow, too."""
    cache = tmp_path / "tokens"
    encode(Dataset.from_dict(ROWS), tokenizer, 16, cache)
    (entry,) = cache.iterdir()
    staging = staging_path(entry)
    staging.write_bytes(b"half" * 10_000)
    for path in (entry, staging):
        os.utime(path, (1, 1))
    monkeypatch.setattr(tokens, "CACHE_BYTES", 4 * entry.stat().st_size)
    encode(Dataset.from_dict(ROWS), tokenizer, 8, cache)
    assert entry.exists() and staging.exists()


class Slow:
    """A tokenizer without a backend, whose digest covers the name of its class and its vocabulary."""

    truncation_side = "right"

    def get_vocab(self) -> dict[str, int]:
        return {"a": 1, "\ud800": 2, "b": 0}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1]] * len(texts), "attention_mask": [[1]] * len(texts)}


def test_digests_match_recorded_values() -> None:
    """A run whose `inputs.json` has another value cannot be resumed."""
    rows = Dataset.from_dict(
        {"text": ["good food", "bad staff", "ü"], "text_pair": ["a", "b", "c"], "label": [1, 0, 1]}
    )
    assert rows_digest(rows) == "445b607451aadeae20317ef5dc89956501d42d9f99d8a1bae7b1604b25d3fa8d"
    fast = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "version_0" / "base")
    assert tokenizer_digest(fast) == "8f7960a4976c239beb0f6d14318ddde923bdf7f1fbb0cf49c15f8642bd2b0431"
    assert tokenizer_digest(Slow()) == "ba9e5496d52bfa58e0229cfd81610bc56bd1de5911c84dc535cceea50487aca6"


def test_encode_with_tokenizer_without_backend_caches_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "tokens"
    assert encode(Dataset.from_dict(ROWS), Slow(), 16, cache)["labels"][:] == ROWS["label"]
    assert not cache.exists()


@pytest.mark.parametrize("small_disk", [4], indirect=True)
def test_encode_on_full_disk_returns_tokens_and_caches_nothing(small_disk: Path, tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": ["good food " * 40] * 50, "label": [0] * 50})
    assert encode(rows, tokenizer, 64, small_disk / "tokens")[:] == encode(rows, tokenizer, 64)[:]
    assert not list((small_disk / "tokens").glob("*"))


def test_encode_beyond_cache_limit_removes_oldest_entries(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "tokens"
    for i in range(3):
        before = set(cache.glob("*"))
        encode(Dataset.from_dict({"text": [f"text {i}"], "label": [i]}), tokenizer, 16, cache)
        (newest,) = set(cache.glob("*")) - before
        os.utime(newest, (i, i))
    size = newest.stat().st_size
    monkeypatch.setattr(tokens, "CACHE_BYTES", int(2.5 * size))
    encode(Dataset.from_dict({"text": ["text 3"], "label": [3]}), tokenizer, 16, cache)
    remaining = list(cache.glob("*.arrow"))
    assert len(remaining) == 2 and newest in remaining
