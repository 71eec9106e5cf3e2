"""The classification head of a base model, and the mapping from its output rows to the labels of the data.

A head is kept only where the label of each output is certain: the names match, or the user accepts the order.
By order alone, `positive, negative` would be learned as `negative, positive`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_core.data.text_keys import text_key
from peft_core.errors import ModelError
from peft_core.problem_types import REGRESSION

BY_NAME, BY_ORDER, FRESH = "by_name", "by_order", "fresh"
_GENERIC = re.compile(r"label[ _-]?\d+", re.IGNORECASE)  # transformers' default label names
_NUMBER = re.compile(r"(?:^[-\u2212])?\d+(?:[.,]\d+)?")


@dataclass(frozen=True)
class HeadChange:
    """A change of the head that the base model declares.

    Attributes:
        layer: Path of the head's output layer.
        rows: The layer's original rows in the order of the labels; None if the layer is initialized anew.
    """

    layer: str
    rows: tuple[int, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {"layer": self.layer, "rows": None if self.rows is None else list(self.rows)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "HeadChange":
        """Read what `to_dict` returned; raises KeyError or TypeError for anything else."""
        rows = fields["rows"]
        return cls(str(fields["layer"]), None if rows is None else tuple(map(int, rows)))


def head_labels(config: Any) -> tuple[str, ...] | None:
    """Return the labels of the head that a model's configuration declares, in order; None without a head."""
    has_head = any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names)) if has_head else None


def label_names(config: Any) -> list[str]:
    """Return the label names of a model's configuration in order."""
    return list(config.id2label.values())


def are_generic(names: Sequence[str]) -> bool:
    """Whether all names are transformers' defaults LABEL_0, LABEL_1, …"""
    return all(_GENERIC.fullmatch(name) for name in names)


def match_by_name(labels: Sequence[str], head: Sequence[str]) -> tuple[int, ...] | None:
    """Return the head's row for each label, or None unless all names match.

    Names match if they differ only in case or in a plural. They match by number (`2` is `2 stars` and
    `LABEL_2`) if all names of one side are bare numbers.
    """
    keys = (text_key, _singular)
    if all(map(_is_bare, labels)) or all(map(_is_bare, head)):
        keys += (_number,)
    for key in keys:
        label_keys, head_keys = [key(name) for name in labels], [key(name) for name in head]
        distinct = set(label_keys)
        sizes_agree = len(head_keys) == len(label_keys) == len(distinct)
        if None not in label_keys and sizes_agree and set(head_keys) == distinct:
            return tuple(map(head_keys.index, label_keys))
    return None


def head_rows(
    labels: Sequence[str], head: Sequence[str], problem_type: str, base_head: str, model: str
) -> tuple[int, ...] | None:
    """Return the row of a head of the right size for each label; None for a fresh head.

    Raises:
        ModelError: The names do not match and `base_head` is not set; the message asks for it.
    """
    if base_head == FRESH:
        return None
    if base_head == BY_ORDER or problem_type == REGRESSION:
        return tuple(range(len(head)))
    rows = match_by_name(labels, head)
    if rows is None:
        raise ModelError(describe_mismatch(labels, head, model))
    return rows


def describe_mismatch(labels: Sequence[str], head: Sequence[str], model: str) -> str:
    """Return the error message for label names of a head and of the data that do not match."""
    first = zip(labels[:3], head, strict=False)
    pairs = ", ".join(f"{_quoted(label)} as {_quoted(name)}" for label, name in first)
    more = ", …" if len(labels) > 3 else ""
    return (
        f"The base model {model!r} has a head for {_listed(head)}, and the data has {_listed(labels)}: "
        "the names do not show which output is which label. Choose base_head: by_order keeps the head "
        f"({pairs}{more}), fresh starts a new one."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names[:6])) + (", …" if len(names) > 6 else "")


def _quoted(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _singular(name: str) -> str:
    """Return a name's words without a plural s; spaces, hyphens and underscores separate words."""
    words = re.split(r"[\s_-]+", text_key(name))
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in words)


def _is_bare(name: str) -> bool:
    return _GENERIC.fullmatch(name) is not None or _NUMBER.fullmatch(name.strip()) is not None


def _number(name: str) -> str | None:
    """Return the only number in a name in a normal form; None if there is not exactly one."""
    numbers = _NUMBER.findall(name.strip())
    if len(numbers) != 1:
        return None
    return f"{float(numbers[0].replace(',', '.').replace(chr(0x2212), '-')):.12g}"
