"""The classification head that a base model brings, and which of its rows stands for which label of the data.

A head is kept only where it is known which output is which label: by name, or because the person agrees to
the order. By order alone `positive, negative` would be learned as `negative, positive`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_core.data.text_keys import text_key
from peft_core.errors import ModelError
from peft_core.problems import REGRESSION

BY_NAME, BY_ORDER, FRESH = "by_name", "by_order", "fresh"
_GENERIC = re.compile(r"label[ _-]?\d+", re.IGNORECASE)  # transformers' own names for outputs without one
_NUMBER = re.compile(r"(?:^[-\u2212])?\d+(?:[.,]\d+)?")


@dataclass(frozen=True)
class HeadChange:
    """What became of the head that a base model brought, where it was not kept as it was.

    `layer` is the path of its output layer. `rows` are the layer's old rows in the order of the labels; None
    where the layer was drawn anew.
    """

    layer: str
    rows: tuple[int, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"layer": self.layer, "rows": None if self.rows is None else list(self.rows)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HeadChange":
        """From `to_dict`; KeyError or TypeError for anything else."""
        rows = values["rows"]
        return cls(str(values["layer"]), None if rows is None else tuple(map(int, rows)))


def head_labels(config: Any) -> tuple[str, ...] | None:
    """The labels of the head that a model's configuration declares, in order; None without such a head."""
    brings_head = any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names)) if brings_head else None


def are_generic(names: Sequence[str]) -> bool:
    """Whether these are transformers' own names LABEL_0, LABEL_1, …, which say nothing."""
    return all(_GENERIC.fullmatch(name) for name in names)


def match_by_name(labels: Sequence[str], head: Sequence[str]) -> tuple[int, ...] | None:
    """The head's row for each label: equal but for case, for a plural, or by number; None if some are not.

    By number `2` is `2 stars` and LABEL_2; only where all names of one side are bare numbers.
    """
    keys = (text_key, _singular)
    if all(map(_is_bare, labels)) or all(map(_is_bare, head)):
        keys += (_number,)
    for key in keys:
        wanted, rows = [key(name) for name in labels], [key(name) for name in head]
        if None not in wanted and len(rows) == len(wanted) == len(set(wanted)) and set(rows) == set(wanted):
            return tuple(map(rows.index, wanted))
    return None


def head_rows(
    labels: Sequence[str], head: Sequence[str], problem_type: str, base_head: str, model: str
) -> tuple[int, ...] | None:
    """The row of a head of the right size for each label; None where a fresh head is wanted.

    Raises ModelError, which asks for `base_head`, where names do not match and it is not set.
    """
    if base_head == FRESH:
        return None
    if base_head == BY_ORDER or problem_type == REGRESSION:
        return tuple(range(len(head)))
    rows = match_by_name(labels, head)
    if rows is None:
        raise ModelError(unmatched(labels, head, model))
    return rows


def unmatched(labels: Sequence[str], head: Sequence[str], model: str) -> str:
    """The question that is asked where the names of a head and of the data do not match."""
    first = zip(labels[:3], head, strict=False)
    pairs = ", ".join(f"{_quoted(label)} as {_quoted(name)}" for label, name in first)
    more = ", …" if len(labels) > 3 else ""
    return (
        f"The base model {model!r} brings a head for {_listed(head)}, and the data has {_listed(labels)}: "
        "the names do not tell which output is which label. Choose base_head: by_order keeps the head "
        f"({pairs}{more}), fresh starts a new one."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names[:6])) + (", …" if len(names) > 6 else "")


def _quoted(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _singular(name: str) -> str:
    """The words without a plural's s, whether spaces, hyphens or underscores part them."""
    words = re.split(r"[\s_-]+", text_key(name))
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in words)


def _is_bare(name: str) -> bool:
    return _GENERIC.fullmatch(name) is not None or _NUMBER.fullmatch(name.strip()) is not None


def _number(name: str) -> str | None:
    """The only number in a name, as a text that equal numbers share."""
    numbers = _NUMBER.findall(name.strip())
    if len(numbers) != 1:
        return None
    return f"{float(numbers[0].replace(',', '.').replace(chr(0x2212), '-')):.12g}"
