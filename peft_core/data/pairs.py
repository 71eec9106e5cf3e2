"""Pairs of texts that share one of their texts: what must be held out together, and what leaks all the same.

In data such as NLI a premise stands in several rows. If one of them is trained on and another is judged on,
the result tells how well the premise was remembered. So rows are held out by connected components: rows that
share a first or a second text, directly or through other rows. Where one component takes in almost
everything (a few second texts that stand beside all first ones), rows are held out by their first texts.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from peft_core.data.findings import Finding, examples, judged_texts, row_count
from peft_core.data.text_keys import TextKey

BOTH, FIRST, PAIR = "both", "first", "pair"
_LARGEST_SHARE = 0.7  # of the rows in one group, so that test and validation rows come out of the others


@dataclass(frozen=True)
class Grouping:
    """The group of each row that is held out with it, and what no group shares with another: both texts,
    the first text, or the pair alone."""

    groups: tuple[TextKey, ...]
    by: str


def group_pairs(keys: Sequence[tuple[str, str]]) -> Grouping:
    """Rows grouped by all shared texts; by the first text, or the pair, where that leaves one huge group."""
    firsts = [first for first, _ in keys]
    for by, groups in ((BOTH, _components(keys)), (FIRST, firsts)):
        largest = max(Counter(groups).values(), default=0)
        if largest <= max(1, _LARGEST_SHARE * len(keys)):
            return Grouping(tuple(groups), by)
    return Grouping(tuple(keys), PAIR)


def group_strata(groups: Sequence[TextKey], strata: Sequence[Hashable]) -> list[Hashable]:
    """Each row's stratum as that of the rarest one in its group, so that a rare label is on both sides."""
    counts = Counter(strata)
    rarest: dict[TextKey, Hashable] = {}
    for group, stratum in zip(groups, strata, strict=True):
        known = rarest.setdefault(group, stratum)
        rarest[group] = min(known, stratum, key=lambda one: (counts[one], str(one)))
    return [rarest[group] for group in groups]


def sharing_rows(splits: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """By role, which rows have a first or second text in common with rows that judge them.

    Training rows are judged by validation and test rows, validation rows by test rows.
    """
    found = {}
    for role, judges in (("train", ("validation", "test")), ("validation", ("test",))):
        if role not in splits:
            continue
        keys = [key for name in judges if name in splits for key in splits[name]["key"]]
        firsts, seconds = {first for first, _ in keys}, {second for _, second in keys}
        flags = [first in firsts or second in seconds for first, second in splits[role]["key"]]
        found[role] = pd.Series(flags, index=splits[role].index, dtype=bool)
    return found


def without_shared_texts(splits: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows without those that `sharing_rows` names."""
    sharing = sharing_rows(splits)
    return {role: rows[~sharing[role]] if role in sharing else rows for role, rows in splits.items()}


def shared_texts(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    """Pairs of which one text alone stands on two sides; whole pairs that do are leakage."""
    train = splits["train"]
    if "text_pair" not in train or not len(train):
        return None
    found = [_shared_with_judges(splits), _inseparable(splits)]
    return next((finding for finding in found if finding is not None), None)


def _shared_with_judges(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    """Of splits that the source gives."""
    leaking = {role: set(judged) for role, judged in judged_texts(splits)}
    rows = pd.concat(
        [
            splits[role][sharing & ~splits[role]["key"].isin(leaking[role])]
            for role, sharing in sharing_rows(splits).items()
        ]
    )
    if not len(rows):
        return None
    words = (
        f"{row_count(rows)} to learn from whose first or second text is also in the validation or test rows."
    )
    return Finding("shared_texts", len(rows), examples(rows), words, "shared_texts")


def _inseparable(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    """Of rows that are held out here, where no choice of them keeps both texts of a pair on one side."""
    train = splits["train"]
    grouping = group_pairs(list(train["key"]))
    if "test" in splits or grouping.by == BOTH:
        return None
    repeated = Counter(second for _, second in train["key"])
    if grouping.by == PAIR:
        repeated.update(first for first, _ in train["key"])
    rows = train[[any(repeated[text] > 1 for text in pair) for pair in train["key"]]]
    kept = "their first texts are held out whole" if grouping.by == FIRST else "each pair is held out alone"
    words = (
        f"{row_count(rows)} whose texts so many share that they cannot all be on one side: {kept}, and "
        f"{'the second' if grouping.by == FIRST else 'one'} text of test rows may be trained on."
    )
    return Finding("shared_texts", len(rows), examples(rows), words, "shared_texts")


def _components(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each row's component, named by the first of its pairs in order of the alphabet (union-find)."""
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for key in keys:
        first, second = ((side, text) for side, text in enumerate(key))
        for node in (first, second):
            parent.setdefault(node, node)
        parent[root(second)] = root(first)
    names: dict[tuple[int, str], tuple[str, str]] = {}
    roots = [root((0, first)) for first, _ in keys]
    for node, key in zip(roots, keys, strict=True):
        names[node] = min(names.get(node, key), key)
    return [names[node] for node in roots]
