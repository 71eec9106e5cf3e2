"""Infer the text and label columns and the problem type; a setting overrides the guess."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pandas as pd

from peft_core.config import TrainConfig
from peft_core.data.cells import as_text, is_empty
from peft_core.data.frames import column_of
from peft_core.data.label_lists import are_lists, as_flag, as_list, indicator_width
from peft_core.data.numbers import as_number, number_style
from peft_core.errors import DataError
from peft_core.problem_types import MULTI, REGRESSION, SINGLE

TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "comment", "title")
LABEL_COLUMNS = ("label", "labels", "stars", "rating", "sentiment", "class", "category", "target")
PAIR_COLUMNS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("question", "answer"),
    ("question", "sentence"),
    ("query", "passage"),
)
KNOWN_COLUMN_NAMES = {*TEXT_COLUMNS, *LABEL_COLUMNS, *chain.from_iterable(PAIR_COLUMNS), "id", "index"}
LABEL_SEPARATORS = ("|", ";", ",")
_INFERENCE_ROWS = 5000  # rows that guesses are based on
_MAX_NUMERIC_CLASSES = 20  # a label column with more distinct numbers may be a regression target


@dataclass(frozen=True)
class Columns:
    """The columns in use, and how their cells are read.

    Attributes:
        label: Name of the label column; with `label_columns` all their names, comma-separated.
        guessed: Names of the settings that were inferred from the data.
        label_columns: Columns that each hold 0 or 1 for the label of their name.
        indicator_labels: Labels of the positions in cells that are lists of 0 and 1.
        decimal_mark: How numbers of the label column are read.
    """

    text: str
    text_pair: str | None
    label: str
    problem_type: str
    label_separator: str | None
    guessed: tuple[str, ...]
    label_columns: tuple[str, ...] = ()
    indicator_labels: tuple[str, ...] = ()
    decimal_mark: str | None = None

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Label names that do not depend on the cells, if any."""
        return self.label_columns or self.indicator_labels or None

    @property
    def names(self) -> tuple[str, ...]:
        """Every column in use."""
        texts = [self.text] if self.text_pair is None else [self.text, self.text_pair]
        return (*texts, *(self.label_columns or (self.label,)))

    def to_dict(self) -> dict[str, Any]:
        """Return the values under the names of the settings, as JSON types."""
        return {
            "text_column": self.text,
            "text_pair_column": self.text_pair,
            "label_column": None if self.label_columns else self.label,
            "label_columns": list(self.label_columns),
            "problem_type": self.problem_type,
            "label_separator": self.label_separator,
            "decimal_mark": self.decimal_mark,
        }


def infer_columns(config: TrainConfig, frame: pd.DataFrame, classes: Mapping[str, Any]) -> Columns:
    """Return the columns that a config names, and a guess for each one it leaves open.

    Guesses use the first `_INFERENCE_ROWS` rows. `classes` are the declared class names by column.

    Raises:
        DataError: If a named column is missing, or a column cannot be guessed.
    """
    frame = frame.iloc[:_INFERENCE_ROWS]
    _check_names(config, frame)
    pair = _known_pair(config, frame)
    configured = {config.text_column, config.text_pair_column, *config.label_columns}
    label = config.label_column or _label_by_name(frame, classes, configured)
    text = config.text_column or (pair and pair[0]) or _guess_text(frame, {label, *configured})
    label_columns = config.label_columns
    if config.label_column is None and not label_columns and (label is None or label == text):
        texts = {text, pair and pair[1], config.text_pair_column}
        label_columns = _zero_one_columns(config, frame, texts)
        label = _label_by_content(frame, texts)
    if label_columns:
        label = ", ".join(label_columns)
    if text is None or label is None:
        name = "text_column" if text is None else "label_column"
        has = ", ".join(map(repr, frame.columns))
        raise DataError(
            f"{config.dataset_name!r} has no {name} that could be guessed; it has {has}: name one."
        )
    pair_column = pair[1] if pair and text == pair[0] and pair[1] != label else None
    text_pair = config.text_pair_column or pair_column
    if text in (label, text_pair, *label_columns):
        raise DataError(f"The column {text!r} cannot be the text column and another one; name another.")
    _check_texts(config, frame, text)
    if label_columns:
        columns = Columns(text, text_pair, label, MULTI, None, (), label_columns)
    else:
        cells = column_of(frame, label)
        problem_type, separator = _resolve_problem_type(config, cells, label in classes)
        may_be_indicators = problem_type == MULTI and separator is None and label not in classes
        indicators = _indicator_labels(cells) if may_be_indicators else ()
        columns = Columns(text, text_pair, label, problem_type, separator, (), (), indicators)
    guessed = [name for name, value in columns.to_dict().items() if value and not getattr(config, name)]
    return dataclasses.replace(columns, guessed=tuple(guessed))


def labels_of(cells: Iterable[Any], columns: Columns, names: Sequence[str] | None) -> list[Any]:
    """Return the label of each cell: a str, a tuple of str or a float by problem type; None if it is empty.

    A cell that is not the number or list that the problem type requires is returned as text.
    `names` are the declared class names, for cells that hold class numbers; -1, a hidden label, gives "".
    """
    if columns.problem_type == REGRESSION:
        cells = list(cells)
        mark = columns.decimal_mark or number_style(cells).decimal_mark
        return [_number_or_text(cell, mark) for cell in cells]
    if columns.indicator_labels:
        return [_labels_of_indicators(cell, columns.indicator_labels) for cell in cells]
    if columns.problem_type == MULTI:
        return [_labels_in_cell(cell, columns.label_separator, names) for cell in cells]
    return [None if is_empty(cell) else _label_name(cell, names) for cell in cells]


def labels_of_columns(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple[str, ...] | None]:
    """Return the labels of each row, the columns that hold 1; None if one of its cells is empty.

    Raises:
        DataError: For a cell that is neither 0 nor 1.
    """
    rows: list[tuple[str, ...] | None] = []
    for index, cells in zip(frame.index, frame[list(columns)].itertuples(index=False), strict=True):
        flags = [None if is_empty(cell) else as_flag(cell) for cell in cells]
        for name, cell, flag in zip(columns, cells, flags, strict=True):
            if flag is None and not is_empty(cell):
                where, row = index if isinstance(index, tuple) else ("the data", index)
                raise DataError(
                    f"{where!r}, row {row}, column {name!r} holds {as_text(cell)[:40]!r}, which is neither "
                    "0 nor 1; correct the cell, or leave the column out of label_columns."
                )
        labels = tuple(name for name, flag in zip(columns, flags, strict=True) if flag)
        rows.append(None if None in flags else labels)
    return rows


def label_order(labels: Iterable[str], declared: Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """Return the label names in order, and whether they are names rather than bare numbers."""
    if declared:
        return tuple(declared), True
    names = set(labels)
    if names and all(_is_bare_number(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name))), False
    return tuple(sorted(names)), True


def _check_names(config: TrainConfig, frame: pd.DataFrame) -> None:
    if config.label_column and config.label_columns:
        raise DataError(
            f"label_column is {config.label_column!r} and label_columns is "
            f"{', '.join(config.label_columns)}; leave one of the two empty."
        )
    if config.label_columns and config.problem_type not in (None, MULTI):
        raise DataError(
            f"label_columns names {', '.join(config.label_columns)}, which give several labels per text; "
            "choose the task “Several labels per text”, or name one label_column."
        )
    settings = [(key, getattr(config, key)) for key in ("text_column", "text_pair_column", "label_column")]
    for setting, name in (*settings, *(("label_columns", name) for name in config.label_columns)):
        if name is not None and name not in frame.columns:
            has = ", ".join(frame.columns)
            raise DataError(f"{config.dataset_name!r} has no {setting} {name}; it has {has}.")


def _check_texts(config: TrainConfig, frame: pd.DataFrame, text: str) -> None:
    cells = column_of(frame, text)
    example = next((cell for cell in cells if not is_empty(cell)), None)
    if not _holds_texts(cells) and example is not None:
        example = next((cell for cell in cells if isinstance(cell, list)), example)
        kind = {"int": "numbers", "float": "numbers", "list": "lists"}.get(type(example).__name__, "no texts")
        raise DataError(f"The text_column {text!r} of {config.dataset_name!r} holds {kind}; name another.")


def _known_pair(config: TrainConfig, frame: pd.DataFrame) -> tuple[str, str] | None:
    """Return two columns with the names of a known pair, unless a setting names a text column."""
    by_name = _columns_by_casefold(frame)
    if config.text_column is not None or config.text_pair_column is not None:
        return None
    for first, second in PAIR_COLUMNS:
        if first in by_name and second in by_name and by_name[second] != config.label_column:
            return by_name[first], by_name[second]
    return None


def _columns_by_casefold(frame: pd.DataFrame) -> dict[str, str]:
    return {name.casefold(): name for name in reversed(frame.columns)}


def _label_by_name(frame: pd.DataFrame, classes: Mapping[str, Any], used: Set[str | None]) -> str | None:
    by_name = _columns_by_casefold(frame)
    declared = [name for name in classes if name in frame.columns]
    typical = [by_name[name] for name in LABEL_COLUMNS if name in by_name]
    return next((name for name in declared + typical if name not in used), None)


def _guess_text(frame: pd.DataFrame, used: Set[str | None]) -> str | None:
    """Return the column with a typical name, or the one with the longest texts; a title counts by length."""
    texts = [name for name in frame.columns if name not in used and _holds_texts(column_of(frame, name))]
    by_name = {name.casefold(): name for name in reversed(texts)}
    typical = next((by_name[name] for name in TEXT_COLUMNS if name in by_name and name != "title"), None)
    return typical or max(texts, key=lambda name: _mean_length(column_of(frame, name)), default=None)


def _holds_texts(column: pd.Series) -> bool:
    """Return whether a column holds texts; JSON may have numbers among them."""
    types = {type(cell) for cell in column} - {type(None)}
    return list not in types and (str in types or not types)


def _mean_length(column: pd.Series) -> float:
    return sum(len(as_text(cell)) for cell in column) / max(1, len(column))


def _zero_one_columns(config: TrainConfig, frame: pd.DataFrame, used: Set[str | None]) -> tuple[str, ...]:
    """Return the columns that hold both 0 and 1 and nothing else, if there are at least two.

    Raises:
        DataError: If the problem type is not multi-label, since none of the columns is preferred.
    """
    columns: list[str] = []
    for name in frame.columns:
        flags = {as_flag(cell) for cell in frame[name] if not is_empty(cell) and name not in used}
        if flags == {False, True}:
            columns.append(name)
    if len(columns) < 2:
        return ()
    if config.problem_type not in (None, MULTI):
        raise DataError(
            f"The columns {', '.join(map(repr, columns))} all hold 0 and 1; name one as label_column, or "
            "choose the task “Several labels per text”."
        )
    return tuple(columns)


def _indicator_labels(cells: pd.Series) -> tuple[str, ...]:
    """Return a label for each position of lists of 0 and 1; empty for cells that name their labels."""
    width = indicator_width([cell for cell in cells if not is_empty(cell)])
    return tuple(map(str, range(width or 0)))


def _label_by_content(frame: pd.DataFrame, used: Set[str | None]) -> str | None:
    """Return the column with the fewest distinct, repeating values; else the last numeric or last column."""
    unused = [name for name in frame.columns if name not in used]
    candidates: list[tuple[int, int, str]] = []
    for position, name in enumerate(unused):
        cells = [str(cell) for cell in frame[name] if not is_empty(cell)]
        distinct = len(set(cells))
        if 2 <= distinct <= max(2, len(cells) / 2):
            candidates.append((distinct, -position, name))
    if candidates:
        return min(candidates)[2]
    numeric = [name for name in unused if _is_varying_number(column_of(frame, name))]
    return next(iter(reversed(numeric or unused)), None)


def _is_varying_number(column: pd.Series) -> bool:
    return _all_numbers(column) and column.astype(str).nunique() > 1


def _all_numbers(cells: Iterable[Any]) -> bool:
    filled = [cell for cell in cells if not is_empty(cell)]
    return bool(filled) and all(as_number(cell) is not None for cell in filled)


def _resolve_problem_type(config: TrainConfig, cells: pd.Series, declared: bool) -> tuple[str, str | None]:
    """Return the problem type and the separator of several labels in a cell."""
    filled = [cell for cell in cells if not is_empty(cell)]
    typed = any(isinstance(cell, list) for cell in filled)
    lists = typed or (config.problem_type != SINGLE and not declared and are_lists(filled))
    problem_type, separator = config.problem_type, config.label_separator
    if problem_type is None:
        problem_type, separator = _guess_problem_type(filled, lists, declared, separator)
    elif problem_type == MULTI and not lists and separator is None:
        texts = [str(cell) for cell in filled]
        separator = next((mark for mark in LABEL_SEPARATORS if any(mark in text for text in texts)), None)
    if typed and problem_type != MULTI:
        raise DataError(
            f"The label_column {cells.name!r} holds lists; choose another column, or the "
            "task “Several labels per text”."
        )
    return problem_type, separator if problem_type == MULTI and not lists else None


def _guess_problem_type(
    filled: Sequence[Any], lists: bool, declared: bool, separator: str | None
) -> tuple[str, str | None]:
    if lists or (separator is not None and not declared):
        return MULTI, separator
    if declared or not filled:
        return SINGLE, None
    if _all_numbers(filled):
        return (REGRESSION if _are_measurements(filled) else SINGLE), None
    separator = next((mark for mark in LABEL_SEPARATORS if _is_separator(mark, filled)), None)
    return (MULTI, separator) if separator else (SINGLE, None)


def _are_measurements(cells: Sequence[Any]) -> bool:
    """Return whether numbers are a regression target rather than classes; codes such as 007 are classes."""
    if any(isinstance(cell, str) and re.match(r"[-+]?0\d", cell.strip()) for cell in cells):
        return False
    mark = number_style(cells).decimal_mark
    numbers = [number for cell in cells if (number := as_number(cell, mark)) is not None]
    distinct = len(set(numbers))
    if any(not number.is_integer() for number in numbers):
        return distinct > 2
    return distinct > _MAX_NUMERIC_CLASSES and len(numbers) < 10 * distinct


def _is_separator(mark: str, cells: Sequence[Any]) -> bool:
    """Return whether a mark separates labels: many cells have it, and parts repeat more than cells."""
    texts = [str(cell) for cell in cells]
    several = [text for text in texts if mark in text]
    if len(several) < 0.2 * len(texts):
        return False
    parts = Counter(part for text in texts for part in _split(text, mark))
    repeated = sum(parts.values()) >= 2 * len(parts)
    often = len(several) > 0.5 * len(texts)
    fewer = len(parts) < len(set(texts)) if often else 2 * len(parts) <= len(set(texts))
    return repeated and fewer and max(map(len, parts)) <= 60


def _split(text: str, mark: str) -> list[str]:
    return [part.strip() for part in text.split(mark) if part.strip()]


def _labels_in_cell(
    cell: Any, separator: str | None, names: Sequence[str] | None
) -> tuple[str, ...] | str | None:
    entries = as_list(cell) if separator is None or isinstance(cell, list) else None
    if entries is not None:
        labels = [_label_name(entry, names) for entry in entries if not is_empty(entry)]
    elif is_empty(cell):
        return None
    else:
        text = as_text(cell)
        if not separator and text.strip().startswith("["):
            return text
        labels = _split(text, separator) if separator else [_label_name(cell, names)]
    return tuple(dict.fromkeys(labels))


def _labels_of_indicators(cell: Any, labels: Sequence[str]) -> tuple[str, ...] | str | None:
    """Return the labels whose position in a list holds 1; the cell as text if it is no such list."""
    if is_empty(cell):
        return None
    flags = [as_flag(entry) for entry in as_list(cell) or ()]
    if len(flags) != len(labels) or None in flags:
        return as_text(cell)
    return tuple(label for label, flag in zip(labels, flags, strict=True) if flag)


def _label_name(cell: Any, names: Sequence[str] | None) -> str:
    """Return the declared name of a class number, or the cell as text."""
    if names and isinstance(cell, int) and not isinstance(cell, bool):
        return names[cell] if 0 <= cell < len(names) else ""
    return as_text(cell)


def _number_or_text(cell: Any, decimal_mark: str) -> float | str | None:
    if is_empty(cell):
        return None
    number = as_number(cell, decimal_mark)
    return as_text(cell) if number is None else number


def _is_bare_number(name: str) -> bool:
    """Return whether a label is a number and not a code such as 01."""
    return re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", name, re.ASCII) is not None
