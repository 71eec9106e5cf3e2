"""Findings about ambiguous columns: several label columns, and numbers that can be read in two ways."""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import pandas as pd

from peft_core.config import TrainConfig
from peft_core.data.columns import REGRESSION, Columns, infer_columns
from peft_core.data.findings import Finding
from peft_core.data.numbers import COMMA, POINT, NumberStyle, as_number, number_style
from peft_core.data.reading import TRAIN, RawRows


def resolve_columns(config: TrainConfig, raw: RawRows) -> tuple[Columns, list[Finding]]:
    """Return the columns in use and the findings about them; the decimal mark is inferred from all rows.

    Raises:
        DataError: As `infer_columns` does.
    """
    columns = infer_columns(config, raw.frames[TRAIN], raw.class_names)
    findings = list(_label_column_findings(columns))
    if columns.problem_type == REGRESSION:
        style = number_style(_cells_of_column(raw.frames, columns.label))
        columns = _with_decimal_mark(columns, config, style)
        findings += _number_findings(columns, config, style)
    return columns, findings


def _cells_of_column(frames: Mapping[str, pd.DataFrame], column: str) -> Iterator[Any]:
    return chain.from_iterable(frame[column] for frame in frames.values() if column in frame)


def _with_decimal_mark(columns: Columns, config: TrainConfig, style: NumberStyle) -> Columns:
    if config.decimal_mark:
        return dataclasses.replace(columns, decimal_mark=config.decimal_mark)
    if not style.has_marks:
        return columns
    guessed = (*columns.guessed, "decimal_mark")
    return dataclasses.replace(columns, decimal_mark=style.decimal_mark, guessed=guessed)


def _label_column_findings(columns: Columns) -> Iterator[Finding]:
    if "label_columns" in columns.guessed:
        sentence = (
            f"The columns {columns.label} hold only 0 and 1, so each is read as one of several labels; name "
            "one of them as the label column if only that one is to be learned."
        )
        yield Finding("label_columns", len(columns.label_columns), (), sentence, setting="label_columns")


def _number_findings(columns: Columns, config: TrainConfig, style: NumberStyle) -> Iterator[Finding]:
    if style.ambiguous and config.decimal_mark is None:
        first = style.ambiguous[0]
        sentence = (
            f"The numbers of the column {columns.label!r} can be read in two ways: {first!r} is "
            f"{_format_number(first, POINT)} with a decimal point, "
            f"{_format_number(first, COMMA)} with a decimal comma. "
            "Choose the decimal mark (decimal_mark: point or comma)."
        )
        examples = tuple(
            f"{text}: {_format_number(text, POINT)} or {_format_number(text, COMMA)}"
            for text in style.ambiguous
        )
        yield Finding(
            "numbers", len(style.ambiguous), examples, sentence, setting="decimal_mark", blocks=True
        )
    elif style.mixed:
        sentence = (
            f"The column {columns.label!r} has numbers with a decimal point and with a decimal comma, as "
            f"{' and '.join(map(repr, style.mixed))}; each is read by its own mark."
        )
        yield Finding("mixed_numbers", len(style.mixed), (), sentence)


def _format_number(text: str, mark: str) -> str:
    return f"{as_number(text, mark):.12g}"
