"""Labels that differ only in case or spaces: a finding that names them, and a remedy that makes one."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from peft_core.data.findings import EXAMPLES, Finding, examples, names_of
from peft_core.data.text_keys import text_key


def spellings(splits: Mapping[str, pd.DataFrame], problem_type: str) -> dict[str, str]:
    """Labels that differ from another in case or spaces alone, each with the most frequent one of them."""
    counts: Counter[str] = Counter()
    for rows in splits.values():
        counts.update(name for label in rows["label"] for name in names_of(label, problem_type))
    alike: dict[str, list[str]] = {}
    for name in counts:
        alike.setdefault(text_key(name), []).append(name)
    found = {}
    for names in alike.values():
        if len(names) > 1:
            trimmed: Counter[str] = Counter()
            for name in names:
                trimmed[" ".join(name.split())] += counts[name]
            best = min(trimmed, key=lambda name: (-trimmed[name], name))
            found |= dict.fromkeys(names, best)
    return found


def label_spelling(splits: Mapping[str, pd.DataFrame], problem_type: str) -> Finding | None:
    chosen = spellings(splits, problem_type)
    if not chosen:
        return None
    rows = pd.concat([rows[_carries(rows, chosen, problem_type)] for rows in splits.values()])
    alike: dict[str, list[str]] = {}
    for name, best in chosen.items():
        alike.setdefault(best, []).append(name)
    groups = [" and ".join(map(repr, sorted(names))) for names in alike.values()]
    named = "; ".join(groups[:EXAMPLES]) + ("…" if len(groups) > EXAMPLES else "")
    words = (
        f"{len(chosen):,} labels differ only in case or spaces: {named}. Without the remedy they are "
        "learned as different ones."
    )
    return Finding("label_spelling", len(rows), examples(rows), words, "label_spelling")


def with_one_spelling(splits: dict[str, pd.DataFrame], problem_type: str) -> dict[str, pd.DataFrame]:
    """The rows with one spelling of each label: the most frequent one, without spaces around it."""
    chosen = spellings(splits, problem_type)
    if not chosen:
        return splits

    def spelled(label: Any) -> Any:
        if isinstance(label, tuple):
            return tuple(dict.fromkeys(chosen.get(name, name) for name in label))
        return chosen.get(label, label)

    return {
        role: rows.assign(label=pd.Series([*map(spelled, rows["label"])], index=rows.index, dtype=object))
        for role, rows in splits.items()
    }


def _carries(rows: pd.DataFrame, names: Collection[str], problem_type: str) -> pd.Series:
    """Which rows carry one of these labels."""
    return (
        rows["label"].map(lambda label: any(n in names for n in names_of(label, problem_type))).astype(bool)
    )
