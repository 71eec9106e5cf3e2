"""One doubt about a data set, and what every check of rows needs to describe it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from peft_core.data.columns import MULTI, REGRESSION
from peft_core.data.text_keys import TextKey

EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One doubt: how many rows, a few of them, one sentence, and a safe remedy's name if there is one.

    `setting` is the one that answers a question. With `blocks` no run starts before it is answered.
    """

    kind: str
    count: int
    examples: tuple[str, ...]
    sentence: str
    remedy: str | None = None
    setting: str | None = None
    blocks: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "examples": list(self.examples)}


def row_count(rows: pd.DataFrame) -> str:
    """`1 row` or `1,200 rows`."""
    return f"{len(rows):,} row{'s' * (len(rows) != 1)}"


def examples(rows: pd.DataFrame) -> tuple[str, ...]:
    """A few rows with their places, short enough to be read at a glance."""
    found = []
    for index, text, label in zip(rows.index, rows["text"], rows["label"], strict=True):
        if len(found) == EXAMPLES:
            break
        short = " ".join((text or "").split())
        short = short if len(short) <= 60 else short[:59] + "…"
        words = " + ".join(label) if isinstance(label, tuple) else "no label" if label is None else label
        found.append(f"{index[0]} row {index[1]}: “{short}” {words}")
    return tuple(found)


def names_of(label: Any, problem_type: str) -> tuple[str, ...]:
    """The label names of one row; none for a number or an empty cell."""
    if label is None or problem_type == REGRESSION:
        return ()
    return label if problem_type == MULTI else (label,)


def judged_texts(splits: Mapping[str, pd.DataFrame]) -> list[tuple[str, set[TextKey]]]:
    """Roles, each with the texts that must not be in it."""
    keys = {role: set(splits[role]["key"]) if role in splits else set() for role in ("validation", "test")}
    found = [("train", keys["validation"] | keys["test"])]
    return found + [("validation", keys["test"])] * ("validation" in splits)
