"""Which rows are held out: stratified, seeded, and no text on two sides in another spacing or case."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from peft_core.data.columns import MULTI, REGRESSION
from peft_core.data.text_keys import TextKey

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
VALIDATION_ROWS = 1000  # more would only slow the curve down
_QUANTILES = 10


def strata(labels: Sequence[Any], problem_type: str) -> list[Hashable]:
    """What each row is stratified by: its label, its rarest label, or the tenth that its number falls in."""
    if problem_type == REGRESSION:
        numbers = np.asarray(labels, dtype=float)
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, _QUANTILES + 1)[1:-1]))
        return np.searchsorted(edges, numbers, side="right").tolist()
    if problem_type == MULTI:
        counts = Counter(name for row in labels for name in row)
        return [min(row, key=lambda name: (counts[name], name), default="") for row in labels]
    return list(labels)


def hold_out(
    keys: Sequence[TextKey], strata: Sequence[Hashable], share: float, seed: int, *, at_least: int = 0
) -> list[int]:
    """Positions of the rows held out, in order: `share` of each stratum, rounded, and whole groups of a key.

    A stratum of two or more texts gives `at_least` that many rows. The choice depends on the seed and the
    texts alone, not on the order of the rows. A repeated text counts for the stratum of its first row.
    """
    groups: dict[TextKey, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    by_stratum: dict[Hashable, list[TextKey]] = {}
    for key, positions in groups.items():
        by_stratum.setdefault(strata[positions[0]], []).append(key)
    held: list[int] = []
    for members in by_stratum.values():
        rows = sum(len(groups[key]) for key in members)
        wanted = int(share * rows + 0.5)
        if len(members) > 1:
            wanted = max(wanted, at_least)
        held += _take(sorted(members, key=lambda key: (_rank(key, seed), key)), groups, wanted)
    return sorted(held)


def _take(keys: Iterable[TextKey], groups: dict[TextKey, list[int]], wanted: int) -> list[int]:
    """Rows of whole groups, as near to the number wanted as comes without exceeding it; one at least."""
    keys = list(keys)
    taken: list[int] = []
    for key in keys[: len(keys) - 1]:  # one text stays
        if len(taken) + len(groups[key]) <= wanted:
            taken += groups[key]
    if wanted and not taken and len(keys) > 1:
        taken = list(min((groups[key] for key in keys), key=len))
    return taken


def _rank(key: TextKey, seed: int) -> bytes:
    text = key if isinstance(key, str) else "\0".join(key)
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=8, salt=seed.to_bytes(8, "little")
    ).digest()
