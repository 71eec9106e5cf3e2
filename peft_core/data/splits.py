"""Choice of held-out rows: stratified and seeded, with equal texts (up to case and spaces) in one split."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from peft_core.data.columns import MULTI, REGRESSION
from peft_core.data.text_keys import TextKey

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
VALIDATION_ROWS = 1000  # more would only slow down evaluation during training
_NUM_BINS = 10


def strata(labels: Sequence[Any], problem_type: str) -> list[Hashable]:
    """Return the stratum of each row: its label, its rarest label, or the decile of its number."""
    if problem_type == REGRESSION:
        numbers = np.asarray(labels, dtype=float)
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
        return np.searchsorted(edges, numbers, side="right").tolist()
    if problem_type == MULTI:
        counts = Counter(name for row in labels for name in row)
        return [min(row, key=lambda name: (counts[name], name), default="") for row in labels]
    return list(labels)


def hold_out(
    keys: Sequence[TextKey], strata: Sequence[Hashable], share: float, seed: int, *, at_least: int = 0
) -> list[int]:
    """Choose the rows to hold out: `share` of each stratum, rounded; rows with the same key stay together.

    The choice depends only on the seed and the texts, not on the order of the rows. A repeated text belongs
    to the stratum of its first row.

    Args:
        keys: Text key or group of each row.
        strata: Stratum of each row.
        share: Fraction to hold out, 0 to 1.
        seed: Seed of the choice.
        at_least: Minimum number of rows from each stratum with two or more keys.

    Returns:
        Sorted positions of the rows.
    """
    groups: dict[TextKey, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    by_stratum: dict[Hashable, list[TextKey]] = {}
    for key, positions in groups.items():
        by_stratum.setdefault(strata[positions[0]], []).append(key)
    held_out: list[int] = []
    for members in by_stratum.values():
        rows = sum(len(groups[key]) for key in members)
        target = int(share * rows + 0.5)
        if len(members) > 1:
            target = max(target, at_least)
        held_out += _select_groups(sorted(members, key=lambda key: (_rank(key, seed), key)), groups, target)
    return sorted(held_out)


def _select_groups(keys: Sequence[TextKey], groups: dict[TextKey, list[int]], target: int) -> list[int]:
    """Select whole groups with at most `target` rows together, or the smallest group if none fits."""
    selected: list[int] = []
    for key in keys[: len(keys) - 1]:  # one group stays
        if len(selected) + len(groups[key]) <= target:
            selected += groups[key]
    if target and not selected and len(keys) > 1:
        selected = list(min((groups[key] for key in keys), key=len))
    return selected


def _rank(key: TextKey, seed: int) -> bytes:
    """Return a seeded hash of a key, which orders keys at random."""
    text = key if isinstance(key, str) else "\0".join(key)
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8, salt=seed.to_bytes(8, "little")
    ).digest()
