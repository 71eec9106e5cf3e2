"""Which column holds the texts, which the labels, and of what kind these are; a setting beats a guess."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from peft_core.config import TrainConfig
from peft_core.data.label_lists import are_lists, as_flag, as_list, indicator_width
from peft_core.data.numbers import as_number, number_style
from peft_core.errors import DataError
from peft_core.problems import MULTI, REGRESSION, SINGLE

TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "comment", "title")
LABEL_COLUMNS = ("label", "labels", "stars", "rating", "sentiment", "class", "category", "target")
PAIRS = (
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
KNOWN_NAMES = {*TEXT_COLUMNS, *LABEL_COLUMNS, *(name for pair in PAIRS for name in pair), "id", "index"}
SEPARATORS = ("|", ";", ",")
_LOOKED_AT = 5000  # rows that a guess reads
_FEW_NUMBERS = 20  # a label column with more different numbers than this holds amounts rather than classes


@dataclass(frozen=True)
class Columns:
    """The columns in use; `guessed` names the settings that were left to the data.

    With `label_columns` each of these holds 0 or 1 for one label, and `label` names them all. `places` are
    the labels of cells that are lists of 0 and 1. `decimal_mark` is how the numbers of `label` are read.
    """

    text: str
    text_pair: str | None
    label: str
    problem_type: str
    label_separator: str | None
    guessed: tuple[str, ...]
    label_columns: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    decimal_mark: str | None = None

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The label names that the columns' form gives, whatever the cells hold; None if it gives none."""
        return self.label_columns or self.places or None

    @property
    def names(self) -> tuple[str, ...]:
        """Every column in use."""
        texts = [self.text] if self.text_pair is None else [self.text, self.text_pair]
        return (*texts, *(self.label_columns or (self.label,)))

    def to_dict(self) -> dict[str, Any]:
        """The settings' own names and values, as JSON types."""
        return {
            "text_column": self.text,
            "text_pair_column": self.text_pair,
            "label_column": None if self.label_columns else self.label,
            "label_columns": list(self.label_columns),
            "problem_type": self.problem_type,
            "label_separator": self.label_separator,
            "decimal_mark": self.decimal_mark,
        }


def choose_columns(config: TrainConfig, frame: pd.DataFrame, classes: Mapping[str, Any]) -> Columns:
    """The columns that a config names in a frame, and a guess for each that it leaves open.

    Raises DataError for a name that the frame lacks, or where nothing can be guessed.
    """
    frame = frame.iloc[:_LOOKED_AT]
    _check_names(config, frame)
    pair = _known_pair(config, frame)
    taken = {config.text_column, config.text_pair_column, *config.label_columns}
    label = config.label_column or _guess_label(frame, classes, taken)
    text = config.text_column or (pair and pair[0]) or _guess_text(frame, {label, *taken})
    several = config.label_columns
    if config.label_column is None and not several and (label is None or label == text):
        texts = {text, pair and pair[1], config.text_pair_column}
        several = _zero_one_columns(config, frame, texts)
        label = _label_by_content(frame, texts)
    if several:
        label = ", ".join(several)
    for name, value in (("text_column", text), ("label_column", label)):
        if value is None:
            has = ", ".join(map(repr, frame.columns))
            raise DataError(
                f"{config.dataset_name!r} has no {name} that could be guessed; it has {has}: name one."
            )
    second = config.text_pair_column or (pair[1] if pair and text == pair[0] and pair[1] != label else None)
    if text in (label, second, *several):
        raise DataError(f"The column {text!r} cannot be the text and something else; name another.")
    _check_texts(config, frame, text)
    if several:
        chosen = Columns(text, second, label, MULTI, None, (), several)
    else:
        cells = frame[label]
        kind, separator = _kind(config, cells, label in classes)
        places = _places(cells) if kind == MULTI and separator is None and label not in classes else ()
        chosen = Columns(text, second, label, kind, separator, (), (), places)
    guessed = [name for name, value in chosen.to_dict().items() if value and not getattr(config, name)]
    return dataclasses.replace(chosen, guessed=tuple(guessed))


def labels_of(cells: Iterable[Any], columns: Columns, names: Sequence[str] | None) -> list[Any]:
    """Each cell's label: a str, a tuple of str or a float, by problem type; None where it is empty.

    `names` are the declared class names, for cells that hold their numbers; -1, a hidden label, gives "".
    A cell that is no number, or no list, where one is asked for stays as the text it is.
    """
    if columns.problem_type == REGRESSION:
        cells = list(cells)
        mark = columns.decimal_mark or number_style(cells).decimal_mark
        return [_amount(value, mark) for value in cells]
    if columns.places:
        return [_placed(value, columns.places) for value in cells]
    if columns.problem_type == MULTI:
        return [_parts(value, columns.label_separator, names) for value in cells]
    return [None if is_empty(value) else _name(value, names) for value in cells]


def labels_of_columns(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple[str, ...] | None]:
    """Each row's labels: those of the columns that hold 1; None where one of them is empty.

    Raises DataError for a cell that is neither 0 nor 1.
    """
    rows = []
    for index, cells in zip(frame.index, frame[list(columns)].itertuples(index=False), strict=True):
        flags = [None if is_empty(value) else as_flag(value) for value in cells]
        for name, value, flag in zip(columns, cells, flags, strict=True):
            if flag is None and not is_empty(value):
                where, row = index if isinstance(index, tuple) else ("the data", index)
                raise DataError(
                    f"{where!r}, row {row}, column {name!r} holds {as_text(value)[:40]!r}, which is neither "
                    "0 nor 1; mend the cell, or leave the column out of label_columns."
                )
        labels = tuple(name for name, flag in zip(columns, flags, strict=True) if flag)
        rows.append(None if None in flags else labels)
    return rows


def label_order(labels: Iterable[str], declared: Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """The label names in order, and whether they are names rather than bare numbers."""
    if declared:
        return tuple(declared), True
    found = set(labels)
    if found and all(_is_bare_number(name) for name in found):
        return tuple(sorted(found, key=lambda name: (float(name), name))), False
    return tuple(sorted(found)), True


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing; a list without entries says that no label applies."""
    return value is None or (isinstance(value, str) and not value.strip())


def as_text(value: Any) -> str:
    """A cell as a text exactly as typed; 1.0 of a spreadsheet is 1."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return "" if value is None else str(value)


def _check_names(config: TrainConfig, frame: pd.DataFrame) -> None:
    if config.label_column and config.label_columns:
        raise DataError(
            f"label_column is {config.label_column!r} and label_columns is "
            f"{', '.join(config.label_columns)}; leave one of the two empty."
        )
    if config.label_columns and config.problem_type not in (None, MULTI):
        raise DataError(
            f"label_columns names {', '.join(config.label_columns)}, which are several labels a text; choose "
            "that as the task, or name one label_column."
        )
    named = [(role, getattr(config, role)) for role in ("text_column", "text_pair_column", "label_column")]
    for role, name in (*named, *(("label_columns", name) for name in config.label_columns)):
        if name is not None and name not in frame.columns:
            has = ", ".join(frame.columns)
            raise DataError(f"{config.dataset_name!r} has no {role} {name}; it has {has}.")


def _check_texts(config: TrainConfig, frame: pd.DataFrame, text: str) -> None:
    wrong = next((value for value in frame[text] if not is_empty(value)), None)
    if not _holds_texts(frame[text]) and wrong is not None:
        wrong = next((value for value in frame[text] if isinstance(value, list)), wrong)
        kind = {"int": "numbers", "float": "numbers", "list": "lists"}.get(type(wrong).__name__, "no texts")
        raise DataError(f"The text_column {text!r} of {config.dataset_name!r} holds {kind}; name another.")


def _known_pair(config: TrainConfig, frame: pd.DataFrame) -> tuple[str, str] | None:
    """Two columns whose names say that they are a pair, unless the text column is a person's own choice."""
    by_name = _by_name(frame)
    if config.text_column is not None or config.text_pair_column is not None:
        return None
    for one, other in PAIRS:
        if one in by_name and other in by_name and by_name[other] != config.label_column:
            return by_name[one], by_name[other]
    return None


def _by_name(frame: pd.DataFrame) -> dict[str, str]:
    return {name.casefold(): name for name in reversed(frame.columns)}


def _guess_label(frame: pd.DataFrame, classes: Mapping[str, Any], taken: set) -> str | None:
    by_name = _by_name(frame)
    declared = [name for name in classes if name in frame.columns]
    known = [by_name[name] for name in LABEL_COLUMNS if name in by_name]
    return next((name for name in declared + known if name not in taken), None)


def _guess_text(frame: pd.DataFrame, taken: set) -> str | None:
    """A known name; but a title only where no longer text stands beside it."""
    texts = [name for name in frame.columns if name not in taken and _holds_texts(frame[name])]
    by_name = {name.casefold(): name for name in reversed(texts)}
    known = next((by_name[name] for name in TEXT_COLUMNS if name in by_name and name != "title"), None)
    return known or max(texts, key=lambda name: _mean_length(frame[name]), default=None)


def _holds_texts(column: pd.Series) -> bool:
    """Whether a column holds texts; some of them may look like numbers, and JSON then has numbers there."""
    kinds = {type(value) for value in column} - {type(None)}
    return list not in kinds and (str in kinds or not kinds)


def _mean_length(column: pd.Series) -> float:
    return sum(len(as_text(value)) for value in column) / max(1, len(column))


def _zero_one_columns(config: TrainConfig, frame: pd.DataFrame, taken: set) -> tuple[str, ...]:
    """Two or more columns that each hold both 0 and 1 and nothing else; none if there is one at most.

    Raises DataError where the task is one label or a number: no column is picked out of several like ones.
    """
    found = []
    for name in frame.columns:
        flags = {as_flag(value) for value in frame[name] if not is_empty(value) and name not in taken}
        if flags == {False, True}:
            found.append(name)
    if len(found) < 2:
        return ()
    if config.problem_type not in (None, MULTI):
        raise DataError(
            f"The columns {', '.join(map(repr, found))} all hold 0 and 1; name one as label_column, or "
            "choose several labels a text as the task."
        )
    return tuple(found)


def _places(cells: pd.Series) -> tuple[str, ...]:
    """A name for each place of lists of 0 and 1; none for cells that name their labels."""
    width = indicator_width([value for value in cells if not is_empty(value)])
    return tuple(map(str, range(width or 0)))


def _label_by_content(frame: pd.DataFrame, taken: set) -> str | None:
    """The column with the fewest different values, two or more, that repeat; else the last one left."""
    left = [name for name in frame.columns if name not in taken]
    found = []
    for place, name in enumerate(left):
        cells = [str(value) for value in frame[name] if not is_empty(value)]
        different = len(set(cells))
        if 2 <= different <= max(2, len(cells) / 2):
            found.append((different, -place, name))
    if found:
        return min(found)[2]
    amounts = [name for name in left if _all_numbers(frame[name]) and frame[name].astype(str).nunique() > 1]
    return next(iter(reversed(amounts or left)), None)


def _all_numbers(cells: Iterable[Any]) -> bool:
    filled = [value for value in cells if not is_empty(value)]
    return bool(filled) and all(as_number(value) is not None for value in filled)


def _kind(config: TrainConfig, cells: pd.Series, declared: bool) -> tuple[str, str | None]:
    """The problem type and, between several labels in a cell, their separator."""
    filled = [value for value in cells if not is_empty(value)]
    typed = any(isinstance(value, list) for value in filled)
    lists = typed or (config.problem_type != SINGLE and not declared and are_lists(filled))
    kind, separator = config.problem_type, config.label_separator
    if kind is None:
        kind, separator = _guess_kind(filled, lists, declared, separator)
    elif kind == MULTI and not lists and separator is None:
        separator = next((mark for mark in SEPARATORS if any(mark in str(v) for v in filled)), None)
    if lists and kind != MULTI and typed:
        raise DataError(
            f"The label_column {cells.name!r} holds lists; choose another, or several labels a text."
        )
    return kind, separator if kind == MULTI and not lists else None


def _guess_kind(filled: list, lists: bool, declared: bool, separator: str | None) -> tuple[str, str | None]:
    if lists or (separator is not None and not declared):
        return MULTI, separator
    if declared or not filled:
        return SINGLE, None
    if _all_numbers(filled):
        return (REGRESSION if _are_amounts(filled) else SINGLE), None
    separator = next((mark for mark in SEPARATORS if _separates(mark, filled)), None)
    return (MULTI, separator) if separator else (SINGLE, None)


def _are_amounts(cells: list) -> bool:
    """Whether numbers are measured rather than names of classes; codes such as 007 are names."""
    if any(isinstance(value, str) and re.match(r"[-+]?0\d", value.strip()) for value in cells):
        return False
    mark = number_style(cells).decimal_mark
    numbers = [as_number(value, mark) for value in cells]
    different = len(set(numbers))
    if any(not number.is_integer() for number in numbers):
        return different > 2
    return different > _FEW_NUMBERS and len(numbers) < 10 * different


def _separates(mark: str, cells: list) -> bool:
    """Whether a mark stands between labels: many cells have it, and their parts repeat more than they do."""
    texts = [str(value) for value in cells]
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


def _parts(value: Any, separator: str | None, names: Sequence[str] | None) -> tuple[str, ...] | str | None:
    items = as_list(value) if separator is None or isinstance(value, list) else None
    if items is not None:
        found = [_name(part, names) for part in items if not is_empty(part)]
    elif is_empty(value):
        return None
    else:
        text = as_text(value)
        if not separator and text.strip().startswith("["):
            return text
        found = _split(text, separator) if separator else [_name(value, names)]
    return tuple(dict.fromkeys(found))


def _placed(value: Any, places: Sequence[str]) -> tuple[str, ...] | str | None:
    """The labels whose place in a list holds 1; the cell as typed if it is no such list."""
    if is_empty(value):
        return None
    flags = [as_flag(item) for item in as_list(value) or ()]
    if len(flags) != len(places) or None in flags:
        return as_text(value)
    return tuple(place for place, flag in zip(places, flags, strict=True) if flag)


def _name(value: Any, names: Sequence[str] | None) -> str:
    """A class number's declared name, or the cell as typed."""
    if names and isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else ""
    return as_text(value)


def _amount(value: Any, decimal_mark: str) -> float | str | None:
    if is_empty(value):
        return None
    number = as_number(value, decimal_mark)
    return as_text(value) if number is None else number


def _is_bare_number(name: str) -> bool:
    """Whether a label is a number and no code such as 01."""
    return re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", name, re.ASCII) is not None
