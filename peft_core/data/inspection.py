"""What the page shows of a data set before training: columns, guesses, splits, tokens and findings."""

import dataclasses
import re
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.data.audit import Tokens, apply_remedies, audit
from peft_core.data.column_questions import read_columns
from peft_core.data.columns import MULTI, REGRESSION, as_text, is_empty
from peft_core.data.files import cell
from peft_core.data.findings import Finding
from peft_core.data.label_lists import as_flag
from peft_core.data.labelled import LabelledText, cut, load_labelled_text, on_hub
from peft_core.data.preparing import tidy
from peft_core.data.reading import TRAIN, RawRows, peek_rows, read_rows
from peft_core.data.reading_findings import reading_findings
from peft_core.encoder import has_tokenizer, local_config
from peft_core.errors import DataError, ModelError, PeftCoreError
from peft_core.heads import head_labels, head_rows
from peft_core.presets import HUB_COMMITS
from peft_core.sources import is_local, model_source

MOST_ROWS = 20_000  # of a split that are looked at
TOKENISED = 1000  # texts whose tokens are counted
SHOWN = 5
BINS = 24
_UNSPACED = "\\u0e00-\\u0eff\\u1780-\\u17ff\\u3040-\\u30ff\\u3400-\\u9fff"  # Thai, Lao, Khmer, kana, Han
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")  # a letter of a script without spaces is one
_SAMPLE_LENGTH, _SHOWN_LENGTH, _SHOWN_LABELS = 60, 240, 30


def inspect(config: TrainConfig) -> dict[str, Any]:
    """JSON types: source, columns (name, samples, distinct), guesses, splits, labels, rows, tokens, findings.

    What cannot be found out is left out, and `error` is the sentence that training would end with. Only
    MOST_ROWS rows of a split and TOKENISED texts are looked at; `looked_at` and `tokens` say how many.
    Of a Hub data set only the first rows are fetched, and how it will be split is not told.
    Raises DataError or HubError where there is nothing to read at all.
    """
    peeked = on_hub(config.dataset_name)
    raw = peek_rows(config) if peeked else read_rows(config)
    some = _spread(raw)
    found: dict[str, Any] = {
        **raw.record,
        "split_choices": list(raw.record["splits"]),
        "configs": raw.record.get("configs", []),
        "peeked": peeked,
        "columns": [_column(rows) for _, rows in some.frames[TRAIN].items()],
        "looked_at": {role: len(rows) for role, rows in some.frames.items()},
        "error": None,
    }
    try:
        found |= _of_rows(config, some)
        if not peeked:
            data = load_labelled_text(config)
            found |= _of_training(data)
            _add_head(config, data, found)
    except PeftCoreError as error:
        found["error"] = str(error)
    return found


def _spread(raw: RawRows) -> RawRows:
    """A spread of the rows, beginning with the first: a file may be sorted by label."""
    frames = {role: rows.iloc[:: -(-len(rows) // MOST_ROWS) or 1] for role, rows in raw.frames.items()}
    return dataclasses.replace(raw, frames=frames)


def _column(cells: pd.Series) -> dict[str, Any]:
    texts = [value if isinstance(value, str) else as_text(value) for value in cells.iloc[:1000]]
    samples = [_short(text, _SAMPLE_LENGTH) for text in dict.fromkeys(texts) if text.strip()][:3]
    flags = {as_flag(value) for value in cells if not is_empty(value)}
    return {
        "name": str(cells.name),
        "samples": samples,
        "distinct": len(set(texts)),
        "zero_one": flags == {False, True},
    }


def _of_rows(config: TrainConfig, raw: RawRows) -> dict[str, Any]:
    """Guesses in force, the labels of the training rows, the first rows as tokens, and the findings."""
    columns, questions = read_columns(config, raw)
    frames = tidy(raw, columns)
    train = frames[TRAIN]
    learned = apply_remedies(frames, config.remedies, columns.problem_type)[0][TRAIN]
    found: dict[str, Any] = {
        "in_force": columns.to_dict(),
        "guessed": list(columns.guessed),
        "labels": _labels(learned, columns.problem_type),
    }
    try:
        tokenizer = _tokenizer(config.model_name_or_path, config.revision)
    except PeftCoreError as error:
        found |= {"tokens": None, "no_tokens": str(error), "rows": _plain_rows(learned)}
        tokens = None
    else:
        tokens = _tokens(train, tokenizer, config.max_length)
        found |= {"tokens": _histogram(tokens), "rows": _token_rows(learned, tokenizer, config.max_length)}
    findings = [
        *reading_findings(raw.record),
        *questions,
        *audit(frames, columns.problem_type, tokens),
    ]
    return {**found, "findings": [finding.to_dict() for finding in findings]}


def _of_training(data: LabelledText) -> dict[str, Any]:
    """What training would use: rows by role after remedies, split and sample, and what was left out."""
    return {name: data.record[name] for name in ("used", "dropped", "held_out", "train_labels")}


def _add_head(config: TrainConfig, data: LabelledText, found: dict[str, Any]) -> None:
    """How a head that the base brings meets these labels: `head`, or a finding that asks and an error."""
    shape = local_config(config.model_name_or_path, config.revision)
    head = head_labels(shape) if shape else None
    if head is None or len(head) != data.num_labels:
        return
    name, labels = config.model_name_or_path, data.label_names
    try:
        rows = head_rows(labels, head, data.problem_type, config.base_head, name)
    except ModelError as error:
        question = Finding("base_head", len(head), head[:3], str(error), setting="base_head", blocks=True)
        found["findings"] = [question.to_dict(), *found["findings"]]
        found["error"] = str(error)
    else:
        found["head"] = {"labels": list(head), "rows": None if rows is None else list(rows)}


def _labels(train: pd.DataFrame, problem_type: str) -> dict[str, Any]:
    """Counts by label, the most frequent first; or the range of a number."""
    values = [value for value in train["label"] if value is not None]
    if problem_type == REGRESSION:
        numbers = np.asarray(values, dtype=float)
        return {"range": [float(numbers.min()), float(numbers.max())]} if len(numbers) else {"range": None}
    names = [name for value in values for name in (value if problem_type == MULTI else (value,))]
    counts = Counter(names).most_common()
    return {"counts": [[name, count] for name, count in counts[:_SHOWN_LABELS]], "different": len(counts)}


@lru_cache(maxsize=4)
def _tokenizer(name: str, revision: str | None) -> Any:
    """A model's tokenizer, without asking the Hub for it; DataError where it is not on this machine."""
    try:
        if name == EMBEDDED_MODEL or is_local(name):
            folder = model_source(name, revision, weights=False).folder
            if not has_tokenizer(folder):
                raise DataError(f"The model {name!r} holds no tokenizer, so no tokens are counted.")
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        revision = revision or HUB_COMMITS.get(name)
        return AutoTokenizer.from_pretrained(
            name, revision=revision, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The tokenizer of {name!r} is fetched when training starts; until then no tokens are counted."
        ) from error


def _texts(rows: pd.DataFrame, max_length: int) -> list[list[str]]:
    """The texts, and the second texts where a pair is used, as `encode` cuts them."""
    names = [name for name in ("text", "text_pair") if name in rows]
    return [[cut(text or "", max_length) for text in rows[name]] for name in names]


def _tokens(rows: pd.DataFrame, tokenizer: Any, max_length: int) -> Tokens:
    """Lengths of a spread of texts before they are cut."""
    step = max(1, len(rows) // TOKENISED)
    texts = _texts(rows.iloc[::step].iloc[:TOKENISED], max_length)
    ids = tokenizer(*texts, verbose=False)["input_ids"]
    lengths, unk = [len(one) for one in ids], tokenizer.unk_token_id
    unknown = sum(one.count(unk) for one in ids) if unk is not None else 0
    special = tokenizer.num_special_tokens_to_add(pair=len(texts) > 1) * len(ids)
    words = sum(len(WORD.findall(text)) for column in texts for text in column)
    return Tokens(lengths, unknown, (sum(lengths) - special) / max(1, words), max_length)


def _histogram(tokens: Tokens) -> dict[str, Any]:
    """Texts by token length: `edges` one longer than `counts`, and the share that max_length cuts."""
    longest = max([*tokens.lengths, 1])
    step = -(-longest // BINS)
    counts, edges = np.histogram(tokens.lengths, bins=np.arange(1, longest + step + 1, step))
    return {
        "edges": [int(edge) for edge in edges],
        "counts": [int(count) for count in counts],
        "texts": len(tokens.lengths),
        "median": float(np.median(tokens.lengths)) if len(tokens.lengths) else 0.0,
        "longest": longest,
        "max_length": tokens.max_length,
        "truncated_share": tokens.truncated_share,
        "unknown_share": tokens.unknown_share,
    }


def _plain_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "row": f"{index[0]} row {index[1]}",
            "text": [_short(text or "", _SHOWN_LENGTH) for text in texts],
            "label": _label(label),
        }
        for index, label, *texts in _first(rows)
    ]


def _token_rows(rows: pd.DataFrame, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """The first rows with their tokens as the model reads them: cut, and with its special tokens."""
    texts = _texts(rows.iloc[:SHOWN], max_length)
    if not len(rows):
        return []
    ids = tokenizer(*texts, truncation=True, max_length=max_length)["input_ids"]
    shown = [tokenizer.convert_ids_to_tokens(one) for one in ids]
    return [
        {**row, "tokens": tokens[:40], "length": len(tokens)}
        for row, tokens in zip(_plain_rows(rows), shown, strict=True)
    ]


def _first(rows: pd.DataFrame) -> Any:
    some = rows.iloc[:SHOWN]
    names = [name for name in ("text", "text_pair") if name in rows]
    return zip(some.index, some["label"], *(some[name] for name in names), strict=True)


def _label(value: Any) -> Any:
    return list(value[:_SHOWN_LABELS]) if isinstance(value, tuple) else cell(value)


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
