"""Finding and remedy for labels that differ only in case or spaces."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from peft_core.data.findings import EXAMPLES, Finding, format_examples, label_names_of
from peft_core.data.text_keys import text_key


def canonical_spellings(splits: Mapping[str, pd.DataFrame], problem_type: str) -> dict[str, str]:
    """Map each label that differs from another only in case or spaces to their most frequent spelling."""
    counts: Counter[str] = Counter()
    for rows in splits.values():
        counts.update(name for label in rows["label"] for name in label_names_of(label, problem_type))
    by_key: dict[str, list[str]] = {}
    for name in counts:
        by_key.setdefault(text_key(name), []).append(name)
    canonical: dict[str, str] = {}
    for names in by_key.values():
        if len(names) > 1:
            trimmed: Counter[str] = Counter()
            for name in names:
                trimmed[" ".join(name.split())] += counts[name]
            best = min(trimmed, key=lambda name: (-trimmed[name], name))
            canonical |= dict.fromkeys(names, best)
    return canonical


def label_spelling(splits: Mapping[str, pd.DataFrame], problem_type: str) -> Finding | None:
    """Return a finding on labels that differ only in case or spaces; None if there are none."""
    canonical = canonical_spellings(splits, problem_type)
    if not canonical:
        return None
    rows = pd.concat([rows.loc[_label_mask(rows, canonical, problem_type)] for rows in splits.values()])
    by_spelling: dict[str, list[str]] = {}
    for name, best in canonical.items():
        by_spelling.setdefault(best, []).append(name)
    groups = [" and ".join(map(repr, sorted(names))) for names in by_spelling.values()]
    listed = "; ".join(groups[:EXAMPLES]) + ("…" if len(groups) > EXAMPLES else "")
    sentence = (
        f"{len(canonical):,} labels differ only in case or spaces: {listed}. Without the remedy they are "
        "learned as different ones."
    )
    return Finding("label_spelling", len(rows), format_examples(rows), sentence, "label_spelling")


def unify_spelling(splits: dict[str, pd.DataFrame], problem_type: str) -> dict[str, pd.DataFrame]:
    """Return the rows with one spelling of each label: the most frequent, without surplus spaces."""
    canonical = canonical_spellings(splits, problem_type)
    if not canonical:
        return splits

    def respell(label: Any) -> Any:
        if isinstance(label, tuple):
            return tuple(dict.fromkeys(canonical.get(name, name) for name in label))
        return canonical.get(label, label)

    return {
        role: rows.assign(label=pd.Series([*map(respell, rows["label"])], index=rows.index, dtype=object))
        for role, rows in splits.items()
    }


def _label_mask(rows: pd.DataFrame, names: Collection[str], problem_type: str) -> pd.Series:
    """Return a mask of the rows with at least one of these labels."""
    flags = [any(name in names for name in label_names_of(label, problem_type)) for label in rows["label"]]
    return pd.Series(flags, index=rows.index, dtype=bool)
