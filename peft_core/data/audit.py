"""Audit of labeled rows before training, and the remedies that are safe.

Rows are a data frame with the columns `text`, `text_pair`, `label` (as `columns.labels_of` returns it) and
`key` (the normalized text), indexed by file and row number. Splits are a mapping of such frames by role
(train, validation, test).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from peft_core.data.cells import is_empty
from peft_core.data.columns import REGRESSION, SINGLE
from peft_core.data.findings import (
    EXAMPLES,
    Finding,
    evaluation_text_keys,
    format_examples,
    format_row_count,
    label_names_of,
)
from peft_core.data.frames import column_of, select_rows
from peft_core.data.pairs import shared_texts
from peft_core.data.spelling import label_spelling, unify_spelling
from peft_core.data.text_keys import TextKey

SHORT_TEXT = 3  # characters
IMBALANCE_RATIO = 10.0  # rows of the most frequent label per row of the rarest
UNKNOWN_SHARE = 0.03  # of tokens; a tokenizer for the language of the texts stays far below
MAX_FERTILITY = (
    1.65  # tokens per word; measured on an English tokenizer: reviews 1.1, German 1.9, Russian 4.4
)
TRUNCATED_SHARE = 0.05  # of texts
Frames = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class TokenStatistics:
    """Token statistics of a sample of texts.

    Attributes:
        lengths: Tokens of each text before truncation.
        unknown: Number of unknown tokens.
        fertility: Mean number of tokens per word (Rust et al. 2021, arXiv:2012.15613). A byte-level tokenizer
            has no unknown tokens, so only this reveals an unsupported language.
        max_length: Number of tokens to which texts are truncated.
    """

    lengths: Sequence[int]
    unknown: int
    fertility: float
    max_length: int

    @property
    def truncated_share(self) -> float:
        return sum(length > self.max_length for length in self.lengths) / max(1, len(self.lengths))

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(1, sum(self.lengths))


def audit(
    splits: Mapping[str, pd.DataFrame], problem_type: str, tokens: TokenStatistics | None = None
) -> list[Finding]:
    """Return the findings about rows before any remedy, the most severe first."""
    train = splits["train"]
    whole = _without_empty(splits, problem_type)
    findings = [
        _empty(splits),
        label_spelling(whole, problem_type),
        _conflicts(whole["train"]),
        _leakage(whole),
        shared_texts(whole),
        _small_classes(whole, problem_type),
        _duplicates(whole),
        _short(whole["train"]),
        _imbalance(whole["train"], problem_type) if len(train) else None,
        *(_token_findings(tokens) if tokens else ()),
    ]
    return [finding for finding in findings if finding is not None]


def apply_remedies(
    splits: Frames, remedies: Sequence[str], problem_type: str
) -> tuple[Frames, list[dict[str, Any]]]:
    """Return the rows after the remedies, and what each removed: `{remedy, split, rows, labels}`.

    `rows` is the number of removed rows, `labels` the removed label names. Remedies run in the order of
    `_REMEDIES`, whatever the order of `remedies`.
    """
    dropped: list[dict[str, Any]] = []
    for remedy, apply in _REMEDIES.items():
        if remedy not in remedies:
            continue
        remedied = apply(splits, problem_type)
        for role, before in splits.items():
            after = remedied[role]
            labels = _label_names(before, problem_type) - _label_names(after, problem_type)
            rows = len(before) - len(after)
            if rows or labels:
                dropped.append({"remedy": remedy, "split": role, "rows": rows, "labels": sorted(labels)})
        splits = remedied
    return splits, dropped


def missing_mask(rows: pd.DataFrame) -> pd.Series:
    """Return a mask of the rows without a text, second text or label."""
    no_text_pair = column_of(rows, "text_pair").map(is_empty) if "text_pair" in rows else False
    no_label = column_of(rows, "label").map(lambda label: label is None)
    return column_of(rows, "text").map(is_empty) | no_label | no_text_pair


def labels_with_too_few_texts(splits: Mapping[str, pd.DataFrame], problem_type: str) -> list[str]:
    """Return the labels that cannot be both trained and evaluated.

    These are labels with a single text if test rows must still be held out, and labels that occur in other
    splits but not in the training rows.
    """
    if problem_type == REGRESSION:
        return []
    texts: dict[str, set[TextKey]] = {}
    for key, label in zip(splits["train"]["key"], splits["train"]["label"], strict=True):
        for name in label_names_of(label, problem_type):
            texts.setdefault(name, set()).add(key)
    small = {name for name, keys in texts.items() if len(keys) < 2 and "test" not in splits}
    evaluated = [_label_names(rows, problem_type) for role, rows in splits.items() if role != "train"]
    return sorted(small.union(*evaluated) - (set(texts) - small))


def _empty(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    rows = pd.concat([select_rows(rows, missing_mask(rows)) for rows in splits.values()])
    if not len(rows):
        return None
    sentence = f"{format_row_count(rows)} without text or label."
    return Finding("empty", len(rows), format_examples(rows), sentence, "empty")


def _conflicts(train: pd.DataFrame) -> Finding | None:
    conflicting = column_of(train, "key").isin(_conflicting_keys(train))
    rows = select_rows(train, conflicting).sort_values("key", kind="stable")
    if not len(rows):
        return None
    texts = column_of(rows, "key").nunique()
    sentence = f"{texts:,} text{'s' * (texts > 1)} with more than one label ({format_row_count(rows)})."
    return Finding("conflicts", len(rows), format_examples(rows), sentence, "conflicts")


def _conflicting_keys(rows: pd.DataFrame) -> set[TextKey]:
    repeated = select_rows(rows, column_of(rows, "key").duplicated(keep=False))
    labels = column_of(repeated, "label").map(_sorted_label)
    distinct = labels.groupby(column_of(repeated, "key").to_numpy()).nunique()
    return set(distinct.loc[distinct > 1].index)


def _sorted_label(label: Any) -> Any:
    return tuple(sorted(label)) if isinstance(label, tuple) else label


def _leakage(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    rows = pd.concat(
        [
            select_rows(splits[role], column_of(splits[role], "key").isin(keys))
            for role, keys in evaluation_text_keys(splits)
        ]
    )
    if not len(rows):
        return None
    count = format_row_count(rows, "training row")
    sentence = f"{count} whose text is also in the validation or test rows."
    return Finding("leakage", len(rows), format_examples(rows), sentence, "leakage")


def _small_classes(splits: Mapping[str, pd.DataFrame], problem_type: str) -> Finding | None:
    small = labels_with_too_few_texts(splits, problem_type)
    if not small:
        return None
    rows = pd.concat(
        [select_rows(rows, _has_any_label(rows, small, problem_type)) for rows in splits.values()]
    )
    names = ", ".join(map(repr, small[:EXAMPLES])) + ("…" if len(small) > EXAMPLES else "")
    sentence = (
        f"{len(small):,} label{'s' * (len(small) > 1)} with too few texts for training and evaluation: "
        f"{names}."
    )
    return Finding("small_classes", len(rows), format_examples(rows), sentence, "small_classes")


def _has_any_label(rows: pd.DataFrame, labels: Sequence[str], problem_type: str) -> pd.Series:
    names = set(labels)
    has_any = column_of(rows, "label").map(
        lambda label: bool(names & set(label_names_of(label, problem_type)))
    )
    return has_any.astype(bool)


def _duplicates(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    rows = pd.concat([select_rows(rows, _is_repeated(rows)) for rows in splits.values()])
    if not len(rows):
        return None
    exact = sum(
        int(pd.DataFrame({"text": rows["text"], "label": rows["label"]}).duplicated().sum())
        for rows in splits.values()
    )
    exactness = "exactly" if exact >= len(rows) else f"{exact:,} of them exactly"
    sentence = f"{format_row_count(rows)} repeating an earlier one ({exactness})."
    return Finding("duplicates", len(rows), format_examples(rows), sentence, "duplicates")


def _is_repeated(rows: pd.DataFrame) -> pd.Series:
    labels = column_of(rows, "label").map(_sorted_label)
    return pd.DataFrame({"key": rows["key"], "label": labels}).duplicated()


def _short(train: pd.DataFrame) -> Finding | None:
    if not len(train):
        return None
    is_short = column_of(train, "text").map(lambda text: len(text.strip())) < SHORT_TEXT
    rows = select_rows(train, is_short)
    if not len(rows):
        return None
    sentence = f"{format_row_count(rows)} with a text of fewer than {SHORT_TEXT} characters."
    return Finding("short", len(rows), format_examples(rows), sentence)


def _imbalance(train: pd.DataFrame, problem_type: str) -> Finding | None:
    counts = Counter(name for label in train["label"] for name in label_names_of(label, problem_type))
    if problem_type == REGRESSION or len(counts) < 2:
        return None
    (largest, largest_count), (smallest, smallest_count) = counts.most_common()[0], counts.most_common()[-1]
    if largest_count < IMBALANCE_RATIO * smallest_count:
        return None
    sentence = (
        f"The label {largest!r} has {largest_count:,} rows and {smallest!r} only {smallest_count:,}: "
        "balanced class weights make the rare labels count as much."
    )
    return Finding("imbalance", smallest_count, (), sentence)


def _token_findings(tokens: TokenStatistics) -> list[Finding]:
    unknown, truncated = tokens.unknown_share, tokens.truncated_share
    findings: list[Finding] = []
    if unknown > UNKNOWN_SHARE:
        sentence = (
            f"The model's tokenizer does not know {_percent(unknown)} of the tokens; "
            "is the model made for this language?"
        )
        findings.append(Finding("unknown_tokens", tokens.unknown, (), sentence))
    elif tokens.fertility > MAX_FERTILITY:
        sentence = (
            f"The model's tokenizer splits a word into {tokens.fertility:.1f} tokens on average (about 1.1 "
            "to 1.5 for words that it knows): is the model made for this language and field?"
        )
        findings.append(Finding("broken_words", len(tokens.lengths), (), sentence))
    if truncated > TRUNCATED_SHARE:
        sentence = (
            f"{_percent(truncated)} of the texts are longer than {tokens.max_length} tokens and are "
            "truncated."
        )
        long = sum(length > tokens.max_length for length in tokens.lengths)
        findings.append(Finding("truncated", long, (), sentence))
    return findings


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _label_names(rows: pd.DataFrame, problem_type: str) -> set[str]:
    return {name for label in rows["label"] for name in label_names_of(label, problem_type)}


def _without_empty(splits: Mapping[str, pd.DataFrame], problem_type: str) -> Frames:
    return {role: select_rows(rows, ~missing_mask(rows)) for role, rows in splits.items()}


def _without_conflicts(splits: Frames, problem_type: str) -> Frames:
    return {
        role: rows if role == "test" else _without_keys(rows, _conflicting_keys(rows))
        for role, rows in splits.items()
    }


def _without_duplicates(splits: Frames, problem_type: str) -> Frames:
    return {role: select_rows(rows, ~_is_repeated(rows)) for role, rows in splits.items()}


def _without_leakage(splits: Frames, problem_type: str) -> Frames:
    keys = dict(evaluation_text_keys(splits))
    return {role: _without_keys(rows, keys.get(role, set())) for role, rows in splits.items()}


def _without_keys(rows: pd.DataFrame, keys: set[TextKey]) -> pd.DataFrame:
    return select_rows(rows, ~column_of(rows, "key").isin(keys))


def _without_small_classes(splits: Frames, problem_type: str) -> Frames:
    """Remove labels with too few texts: their rows, or from rows of several labels only the label.

    A row of several labels is removed if it has no other label.
    """
    small = labels_with_too_few_texts(splits, problem_type)
    if problem_type == SINGLE:
        return {
            role: select_rows(rows, ~_has_any_label(rows, small, problem_type))
            for role, rows in splits.items()
        }
    remaining: Frames = {}
    for role, rows in splits.items():
        had_any = _has_any_label(rows, small, problem_type)
        labels = [
            tuple(name for name in label if name not in small) if had else label
            for label, had in zip(rows["label"], had_any, strict=True)
        ]
        rows = rows.assign(label=pd.Series(labels, index=rows.index, dtype=object))
        if small:
            lost_all = had_any & (column_of(rows, "label").map(len) == 0)
            rows = select_rows(rows, ~lost_all)
        remaining[role] = rows
    return remaining


_REMEDIES: dict[str, Callable[[Frames, str], Frames]] = {
    "label_spelling": unify_spelling,
    "empty": _without_empty,
    "conflicts": _without_conflicts,
    "duplicates": _without_duplicates,
    "leakage": _without_leakage,
    "small_classes": _without_small_classes,
}
