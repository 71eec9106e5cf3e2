"""Grouping of text pairs that share a text, so that splits do not leak, and detection of remaining leakage.

In data such as NLI a premise occurs in several rows. If one of them is a training row and another a test row,
the score measures how well the premise was memorized. So rows are held out by connected components: rows that
share a first or a second text, directly or through other rows. If one component holds almost all rows (as if
a few second texts occur beside all first ones), rows are held out by their first texts.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from peft_core.data.findings import Finding, evaluation_text_keys, format_examples, format_row_count
from peft_core.data.text_keys import TextKey

BOTH, FIRST, PAIR = "both", "first", "pair"
_MAX_GROUP_SHARE = 0.7  # of the rows, so that test and validation rows can come from the other groups


@dataclass(frozen=True)
class Grouping:
    """A partition of rows that are held out together.

    Attributes:
        groups: Group of each row.
        by: What two groups never share: `both` texts, the `first` text, or the whole `pair`.
    """

    groups: tuple[TextKey, ...]
    by: str


def group_pairs(keys: Sequence[tuple[str, str]]) -> Grouping:
    """Group rows by all shared texts; if that gives one huge group, by the first text or the pair."""
    firsts = [first for first, _ in keys]
    for by, groups in ((BOTH, _components(keys)), (FIRST, firsts)):
        largest = max(Counter(groups).values(), default=0)
        if largest <= max(1, _MAX_GROUP_SHARE * len(keys)):
            return Grouping(tuple(groups), by)
    return Grouping(tuple(keys), PAIR)


def group_strata(groups: Sequence[TextKey], strata: Sequence[Hashable]) -> list[Hashable]:
    """Return for each row the rarest stratum in its group, so that a rare label is in both splits."""
    counts = Counter(strata)
    rarest: dict[TextKey, Hashable] = {}
    for group, stratum in zip(groups, strata, strict=True):
        current = rarest.setdefault(group, stratum)
        rarest[group] = min(current, stratum, key=lambda name: (counts[name], str(name)))
    return [rarest[group] for group in groups]


def shared_text_masks(splits: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """Return a mask of the rows that share a first or second text with the rows of an evaluation split.

    Training rows are compared with validation and test rows, validation rows with test rows.
    """
    masks = {}
    for role, evaluation_splits in (("train", ("validation", "test")), ("validation", ("test",))):
        if role not in splits:
            continue
        keys = [key for name in evaluation_splits if name in splits for key in splits[name]["key"]]
        firsts, seconds = {first for first, _ in keys}, {second for _, second in keys}
        flags = [first in firsts or second in seconds for first, second in splits[role]["key"]]
        masks[role] = pd.Series(flags, index=splits[role].index, dtype=bool)
    return masks


def drop_shared_texts(splits: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the splits without the rows that `shared_text_masks` marks."""
    masks = shared_text_masks(splits)
    return {role: rows.loc[~masks[role]] if role in masks else rows for role, rows in splits.items()}


def shared_texts(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    """Return a finding on pairs that share only one text with another split; whole pairs are leakage."""
    train = splits["train"]
    if "text_pair" not in train or not len(train):
        return None
    findings = (_shared_with_evaluation(splits), _inseparable(splits))
    return next((finding for finding in findings if finding is not None), None)


def _shared_with_evaluation(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    """Return the finding for splits that the source provides."""
    leaking = {role: list(keys) for role, keys in evaluation_text_keys(splits)}
    rows = pd.concat(
        [
            splits[role].loc[mask & ~splits[role]["key"].isin(leaking[role])]
            for role, mask in shared_text_masks(splits).items()
        ]
    )
    if not len(rows):
        return None
    sentence = (
        f"{format_row_count(rows, 'training row')} whose first or second text is also in the validation or "
        "test rows."
    )
    return Finding("shared_texts", len(rows), format_examples(rows), sentence, "shared_texts")


def _inseparable(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    """Return the finding for pairs whose two texts cannot both be kept within one split."""
    train = splits["train"]
    grouping = group_pairs(list(train["key"]))
    if "test" in splits or grouping.by == BOTH:
        return None
    repeated = Counter(second for _, second in train["key"])
    if grouping.by == PAIR:
        repeated.update(first for first, _ in train["key"])
    rows = train.loc[[any(repeated[text] > 1 for text in pair) for pair in train["key"]]]
    held_out_by = (
        "rows with the same first text are held out together"
        if grouping.by == FIRST
        else "each pair is held out on its own"
    )
    sentence = (
        f"{format_row_count(rows)} share texts with so many others that they cannot all be in one split: "
        f"{held_out_by}, and {'the second' if grouping.by == FIRST else 'one'} text of test rows may also be "
        "in the training rows."
    )
    return Finding("shared_texts", len(rows), format_examples(rows), sentence, "shared_texts")


def _components(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the connected component of each row (union-find), named by its first pair in sorted order."""
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
