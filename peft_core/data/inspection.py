"""Describe a data set for the page before training: columns, guesses, splits, tokens and findings."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.data.audit import TokenStatistics, apply_remedies, audit
from peft_core.data.cells import as_text, is_empty, to_cell
from peft_core.data.column_questions import resolve_columns
from peft_core.data.columns import MULTI, REGRESSION
from peft_core.data.findings import Finding
from peft_core.data.label_lists import as_flag
from peft_core.data.labelled import LabeledSplits, is_hub_dataset, load_labeled_splits, truncate_text
from peft_core.data.preparing import normalize
from peft_core.data.reading import TRAIN, RawRows, preview_rows, read_rows
from peft_core.data.reading_findings import reading_findings
from peft_core.errors import DataError, ModelError, PeftCoreError
from peft_core.models.encoder import has_tokenizer, local_config
from peft_core.models.heads import head_labels, head_rows
from peft_core.models.presets import HUB_COMMITS
from peft_core.models.sources import is_local, model_source

MAX_SAMPLE_ROWS = 20_000  # of a split that are inspected
MAX_TOKENIZED = 1000  # texts whose tokens are counted
PREVIEW_ROWS = 5
HISTOGRAM_BINS = 24
_UNSPACED = "\\u0e00-\\u0eff\\u1780-\\u17ff\\u3040-\\u30ff\\u3400-\\u9fff"  # Thai, Lao, Khmer, kana, Han
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")  # each letter of an unspaced script is a word
_SAMPLE_LENGTH, _PREVIEW_LENGTH = 60, 240  # characters
_MAX_LABELS = 30  # that are listed
_PREVIEW_TOKENS = 40


def inspect(config: TrainConfig) -> dict[str, Any]:
    """Return the source, columns, guesses, splits, labels, rows, tokens and findings as JSON types.

    At most MAX_SAMPLE_ROWS rows of a split and MAX_TOKENIZED texts are inspected; `looked_at` and `tokens`
    tell how many. Of a Hub data set only the first rows are fetched, and the report does not tell how it will
    be split. `error` is the error that training would end with; the report then lacks what is unknown.

    Raises:
        DataError: If a local data set cannot be read at all.
        HubError: If a Hub data set cannot be read at all.
    """
    on_hub = is_hub_dataset(config.dataset_name)
    raw = preview_rows(config) if on_hub else read_rows(config)
    sample = _sample_rows(raw)
    report: dict[str, Any] = {
        **raw.record,
        "split_choices": list(raw.record["splits"]),
        "configs": raw.record.get("configs", []),
        "peeked": on_hub,
        "columns": [_describe_column(cells) for _, cells in sample.frames[TRAIN].items()],
        "looked_at": {role: len(rows) for role, rows in sample.frames.items()},
        "error": None,
    }
    try:
        report |= _describe_rows(config, sample)
        if not on_hub:
            data = load_labeled_splits(config)
            report |= _describe_training_data(data)
            _add_head(config, data, report)
    except PeftCoreError as error:
        report["error"] = str(error)
    return report


def _sample_rows(raw: RawRows) -> RawRows:
    """Return evenly spaced rows of each split, since a file may be sorted by label."""
    frames = {role: rows.iloc[:: -(-len(rows) // MAX_SAMPLE_ROWS) or 1] for role, rows in raw.frames.items()}
    return dataclasses.replace(raw, frames=frames)


def _describe_column(cells: pd.Series) -> dict[str, Any]:
    texts = [cell if isinstance(cell, str) else as_text(cell) for cell in cells.iloc[:1000]]
    samples = [_shorten(text, _SAMPLE_LENGTH) for text in dict.fromkeys(texts) if text.strip()][:3]
    flags = {as_flag(cell) for cell in cells if not is_empty(cell)}
    return {
        "name": str(cells.name),
        "samples": samples,
        "distinct": len(set(texts)),
        "zero_one": flags == {False, True},
    }


def _describe_rows(config: TrainConfig, raw: RawRows) -> dict[str, Any]:
    """Return the settings in force, labels and first rows of the training split, and the findings."""
    columns, questions = resolve_columns(config, raw)
    frames = normalize(raw, columns)
    train = frames[TRAIN]
    remedied = apply_remedies(frames, config.remedies, columns.problem_type)[0][TRAIN]
    report: dict[str, Any] = {
        "in_force": columns.to_dict(),
        "guessed": list(columns.guessed),
        "labels": _count_labels(remedied, columns.problem_type),
    }
    try:
        tokenizer = _load_tokenizer(config.model_name_or_path, config.revision)
    except PeftCoreError as error:
        report |= {"tokens": None, "no_tokens": str(error), "rows": _preview(remedied)}
        tokens = None
    else:
        tokens = _token_statistics(train, tokenizer, config.max_length)
        rows = _tokenized_preview(remedied, tokenizer, config.max_length)
        report |= {"tokens": _histogram(tokens), "rows": rows}
    findings = [
        *reading_findings(raw.record),
        *questions,
        *audit(frames, columns.problem_type, tokens),
    ]
    return {**report, "findings": [finding.to_dict() for finding in findings]}


def _describe_training_data(data: LabeledSplits) -> dict[str, Any]:
    """Return how many rows training would use by split after remedies and sampling, and what is left out."""
    return {name: data.record[name] for name in ("used", "dropped", "held_out", "train_labels")}


def _add_head(config: TrainConfig, data: LabeledSplits, report: dict[str, Any]) -> None:
    """Add how the base model's head maps to the labels: `head`, or an error and a finding to resolve it."""
    model_config = local_config(config.model_name_or_path, config.revision)
    head = head_labels(model_config) if model_config else None
    if head is None or len(head) != data.num_labels:
        return
    name, labels = config.model_name_or_path, data.label_names
    try:
        rows = head_rows(labels, head, data.problem_type, config.base_head, name)
    except ModelError as error:
        question = Finding("base_head", len(head), head[:3], str(error), setting="base_head", blocks=True)
        report["findings"] = [question.to_dict(), *report["findings"]]
        report["error"] = str(error)
    else:
        report["head"] = {"labels": list(head), "rows": None if rows is None else list(rows)}


def _count_labels(train: pd.DataFrame, problem_type: str) -> dict[str, Any]:
    """Return the rows of each label, the most frequent first; the range of labels that are numbers."""
    labels = [label for label in train["label"] if label is not None]
    if problem_type == REGRESSION:
        numbers = np.asarray(labels, dtype=float)
        return {"range": [float(numbers.min()), float(numbers.max())]} if len(numbers) else {"range": None}
    names = [name for label in labels for name in (label if problem_type == MULTI else (label,))]
    counts = Counter(names).most_common()
    return {"counts": [[name, count] for name, count in counts[:_MAX_LABELS]], "different": len(counts)}


@lru_cache(maxsize=4)
def _load_tokenizer(name: str, revision: str | None) -> Any:
    """Load a model's tokenizer from this machine, without access to the Hub.

    Raises:
        DataError: If the tokenizer is not on this machine.
    """
    try:
        if name == EMBEDDED_MODEL or is_local(name):
            folder = model_source(name, revision, weights=False).folder
            if not has_tokenizer(folder):
                raise DataError(f"The model {name!r} has no tokenizer, so no tokens are counted.")
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
    """Return the texts, and the second texts of pairs, each cut by `truncate_text`."""
    names = [name for name in ("text", "text_pair") if name in rows]
    return [[truncate_text(text or "", max_length) for text in rows[name]] for name in names]


def _token_statistics(rows: pd.DataFrame, tokenizer: Any, max_length: int) -> TokenStatistics:
    """Count the tokens of evenly spaced texts before truncation."""
    step = max(1, len(rows) // MAX_TOKENIZED)
    texts = _texts(rows.iloc[::step].iloc[:MAX_TOKENIZED], max_length)
    ids = tokenizer(*texts, verbose=False)["input_ids"]
    lengths, unk_id = [len(text_ids) for text_ids in ids], tokenizer.unk_token_id
    unknown = sum(text_ids.count(unk_id) for text_ids in ids) if unk_id is not None else 0
    special = tokenizer.num_special_tokens_to_add(pair=len(texts) > 1) * len(ids)
    words = sum(len(WORD.findall(text)) for column in texts for text in column)
    return TokenStatistics(lengths, unknown, (sum(lengths) - special) / max(1, words), max_length)


def _histogram(tokens: TokenStatistics) -> dict[str, Any]:
    """Return a histogram of token lengths (`edges` is one longer than `counts`) and the truncated share."""
    longest = max([*tokens.lengths, 1])
    step = -(-longest // HISTOGRAM_BINS)
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


def _preview(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the first rows with their place, shortened texts and label."""
    return [
        {
            "row": f"{index[0]} row {index[1]}",
            "text": [_shorten(text or "", _PREVIEW_LENGTH) for text in texts],
            "label": _label_cell(label),
        }
        for index, label, *texts in _first_rows(rows)
    ]


def _tokenized_preview(rows: pd.DataFrame, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Return the first rows with the model's input tokens: truncated, and with special tokens."""
    texts = _texts(rows.iloc[:PREVIEW_ROWS], max_length)
    if not len(rows):
        return []
    ids = tokenizer(*texts, truncation=True, max_length=max_length)["input_ids"]
    tokens_by_row = [tokenizer.convert_ids_to_tokens(text_ids) for text_ids in ids]
    return [
        {**row, "tokens": tokens[:_PREVIEW_TOKENS], "length": len(tokens)}
        for row, tokens in zip(_preview(rows), tokens_by_row, strict=True)
    ]


def _first_rows(rows: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Yield the index, label and texts of the first rows."""
    first = rows.iloc[:PREVIEW_ROWS]
    names = [name for name in ("text", "text_pair") if name in rows]
    return zip(first.index, first["label"], *(first[name] for name in names), strict=True)


def _label_cell(label: Any) -> Any:
    return list(label[:_MAX_LABELS]) if isinstance(label, tuple) else to_cell(label)


def _shorten(text: str, max_length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
