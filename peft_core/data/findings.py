"""`Finding`, one problem of a data set, and the helpers with which checks of rows describe it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from peft_core.data.columns import MULTI, REGRESSION
from peft_core.data.text_keys import TextKey

EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One problem of a data set.

    Attributes:
        count: Number of affected rows, labels, texts, tokens or columns, depending on `kind`.
        examples: At most `EXAMPLES` affected rows as text.
        sentence: Description for the user.
        remedy: Name of a safe remedy (see `audit.apply_remedies`), if there is one.
        setting: Name of the setting that answers the question that the finding asks.
        blocks: Whether no run may start before `setting` is set.
    """

    kind: str
    count: int
    examples: tuple[str, ...]
    sentence: str
    remedy: str | None = None
    setting: str | None = None
    blocks: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON types."""
        return {**asdict(self), "examples": list(self.examples)}


def format_row_count(rows: pd.DataFrame, noun: str = "row") -> str:
    """Return the number of rows with its noun: `1 row` or `1,200 rows`."""
    return f"{len(rows):,} {noun}{'s' * (len(rows) != 1)}"


def format_examples(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return up to `EXAMPLES` rows as lines of file, row number, text (at most 60 characters) and label."""
    lines: list[str] = []
    for index, text, label in zip(rows.index, rows["text"], rows["label"], strict=True):
        if len(lines) == EXAMPLES:
            break
        short = " ".join((text or "").split())
        short = short if len(short) <= 60 else short[:59] + "…"
        words = " + ".join(label) if isinstance(label, tuple) else "no label" if label is None else label
        lines.append(f"{index[0]} row {index[1]}: “{short}” {words}")
    return tuple(lines)


def label_names_of(label: Any, problem_type: str) -> tuple[str, ...]:
    """Return the label names of one row; empty for a number or a missing label."""
    if label is None or problem_type == REGRESSION:
        return ()
    return label if problem_type == MULTI else (label,)


def evaluation_text_keys(splits: Mapping[str, pd.DataFrame]) -> list[tuple[str, set[TextKey]]]:
    """Return the splits that may have leakage, each with the text keys that must not be in it.

    Training rows must not repeat validation or test texts, and validation rows must not repeat test texts.
    """
    keys = {role: set(splits[role]["key"]) if role in splits else set() for role in ("validation", "test")}
    reserved = [("train", keys["validation"] | keys["test"])]
    return reserved + [("validation", keys["test"])] * ("validation" in splits)
