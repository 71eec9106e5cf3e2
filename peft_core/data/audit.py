"""What is doubtful about labelled rows before anything is trained on them, and the remedies that are safe.

Rows are a frame with the columns `text`, `text_pair`, `label` (as `columns.labels_of` gives it) and `key`
(the normalised text), indexed by file and row number; a mapping of them by role (train, validation, test).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from peft_core.data.columns import REGRESSION, SINGLE, is_empty
from peft_core.data.findings import EXAMPLES, Finding, examples, judged_texts, names_of, row_count
from peft_core.data.pairs import shared_texts
from peft_core.data.spelling import label_spelling, with_one_spelling
from peft_core.data.text_keys import TextKey

SHORT = 3  # letters
IMBALANCE = 10.0  # times that the most frequent label has the rows of the rarest
UNKNOWN_SHARE = 0.03  # of tokens; a tokenizer of the texts' language stays far below
PIECES = 1.65  # tokens a word; measured on an English tokenizer: reviews 1.1, German 1.9, Russian 4.4
TRUNCATED_SHARE = 0.05
Frames = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Tokens:
    """Token counts of some texts before they are cut, and how many tokens the tokenizer did not know.

    `pieces` is the mean number of tokens that it makes of a word (fertility: Rust et al. 2021,
    arXiv:2012.15613); a tokenizer of bytes knows every token, so this alone tells a strange language there.
    """

    lengths: Sequence[int]
    unknown: int
    pieces: float
    max_length: int

    @property
    def truncated_share(self) -> float:
        return sum(length > self.max_length for length in self.lengths) / max(1, len(self.lengths))

    @property
    def unknown_share(self) -> float:
        return self.unknown / max(1, sum(self.lengths))


def audit(
    splits: Mapping[str, pd.DataFrame], problem_type: str, tokens: Tokens | None = None
) -> list[Finding]:
    """Every finding about these rows as they are, before any remedy; the gravest first."""
    train = splits["train"]
    whole = {role: rows[~missing(rows)] for role, rows in splits.items()}
    found = [
        _empty(splits),
        label_spelling(whole, problem_type),
        _conflicts(whole["train"]),
        _leakage(whole),
        shared_texts(whole),
        _small_classes(whole, problem_type),
        _duplicates(whole),
        _short(whole["train"]),
        _imbalance(whole["train"], problem_type) if len(train) else None,
        *(_of_tokens(tokens) if tokens else ()),
    ]
    return [finding for finding in found if finding is not None]


def apply_remedies(
    splits: Frames, remedies: Sequence[str], problem_type: str
) -> tuple[Frames, list[dict[str, Any]]]:
    """The rows that the remedies leave, and what each left out: `{remedy, split, rows, labels}`."""
    dropped: list[dict[str, Any]] = []
    for remedy, left in _REMEDIES.items():
        if remedy not in remedies:
            continue
        kept = left(splits, problem_type)
        for role, before in splits.items():
            gone = _label_names(before, problem_type) - _label_names(kept[role], problem_type)
            rows = len(before) - len(kept[role])
            if rows or gone:
                dropped.append({"remedy": remedy, "split": role, "rows": rows, "labels": sorted(gone)})
        splits = kept
    return splits, dropped


def missing(rows: pd.DataFrame) -> pd.Series:
    """Which rows have no text, no second text or no label."""
    pairs = rows["text_pair"].map(is_empty) if "text_pair" in rows else False
    return rows["text"].map(is_empty) | rows["label"].map(lambda label: label is None) | pairs


def small_labels(splits: Mapping[str, pd.DataFrame], problem_type: str) -> list[str]:
    """Labels with one text where test rows must be held out; and those judged on but never trained on."""
    if problem_type == REGRESSION:
        return []
    texts: dict[str, set[TextKey]] = {}
    for key, label in zip(splits["train"]["key"], splits["train"]["label"], strict=True):
        for name in names_of(label, problem_type):
            texts.setdefault(name, set()).add(key)
    small = {name for name, keys in texts.items() if len(keys) < 2 and "test" not in splits}
    judged = [_label_names(rows, problem_type) for role, rows in splits.items() if role != "train"]
    return sorted(small.union(*judged) - (set(texts) - small))


def where(index: tuple[str, int]) -> str:
    """A row's place as a sentence names it."""
    return f"{index[0]!r}, row {index[1]}"


def _empty(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    rows = pd.concat([rows[missing(rows)] for rows in splits.values()])
    if not len(rows):
        return None
    return Finding("empty", len(rows), examples(rows), f"{row_count(rows)} without text or label.", "empty")


def _conflicts(train: pd.DataFrame) -> Finding | None:
    rows = train[train["key"].isin(_conflicting(train))].sort_values("key", kind="stable")
    if not len(rows):
        return None
    texts = rows["key"].nunique()
    words = f"{texts:,} text{'s' * (texts > 1)} with more than one label ({row_count(rows)})."
    return Finding("conflicts", len(rows), examples(rows), words, "conflicts")


def _conflicting(rows: pd.DataFrame) -> set[TextKey]:
    repeated = rows[rows["key"].duplicated(keep=False)]
    labels = repeated["label"].map(_comparable).groupby(repeated["key"].to_numpy()).nunique()
    return set(labels[labels > 1].index)


def _comparable(label: Any) -> Any:
    return tuple(sorted(label)) if isinstance(label, tuple) else label


def _leakage(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    rows = pd.concat(
        [splits[role][splits[role]["key"].isin(judged)] for role, judged in judged_texts(splits)]
    )
    if not len(rows):
        return None
    words = f"{row_count(rows)} to learn from whose text is also in the validation or test rows."
    return Finding("leakage", len(rows), examples(rows), words, "leakage")


def _small_classes(splits: Mapping[str, pd.DataFrame], problem_type: str) -> Finding | None:
    small = small_labels(splits, problem_type)
    if not small:
        return None
    rows = pd.concat([rows[_has_any(rows, small, problem_type)] for rows in splits.values()])
    named = ", ".join(map(repr, small[:EXAMPLES])) + ("…" if len(small) > EXAMPLES else "")
    many = len(small) > 1
    words = f"{len(small):,} label{'s' * many} with too few texts to learn from and be judged on: {named}."
    return Finding("small_classes", len(rows), examples(rows), words, "small_classes")


def _has_any(rows: pd.DataFrame, labels: Sequence[str], problem_type: str) -> pd.Series:
    wanted = set(labels)
    return rows["label"].map(lambda label: bool(wanted & set(names_of(label, problem_type)))).astype(bool)


def _duplicates(splits: Mapping[str, pd.DataFrame]) -> Finding | None:
    rows = pd.concat([rows[_repeated(rows)] for rows in splits.values()])
    if not len(rows):
        return None
    exact = sum(
        int(rows[["text"]].assign(label=rows["label"]).duplicated().sum()) for rows in splits.values()
    )
    same = "letter for letter" if exact >= len(rows) else f"{exact:,} of them letter for letter"
    words = f"{row_count(rows)} repeating an earlier one ({same})."
    return Finding("duplicates", len(rows), examples(rows), words, "duplicates")


def _repeated(rows: pd.DataFrame) -> pd.Series:
    return pd.DataFrame({"key": rows["key"], "label": rows["label"].map(_comparable)}).duplicated()


def _short(train: pd.DataFrame) -> Finding | None:
    rows = train[train["text"].str.strip().str.len() < SHORT] if len(train) else train
    if not len(rows):
        return None
    return Finding(
        "short", len(rows), examples(rows), f"{row_count(rows)} with a text below {SHORT} letters."
    )


def _imbalance(train: pd.DataFrame, problem_type: str) -> Finding | None:
    counts = Counter(name for label in train["label"] for name in names_of(label, problem_type))
    if problem_type == REGRESSION or len(counts) < 2:
        return None
    (most, many), (least, few) = counts.most_common()[0], counts.most_common()[-1]
    if many < IMBALANCE * few:
        return None
    words = (
        f"The label {most!r} has {many:,} rows and {least!r} only {few:,}: balanced class weights make the "
        "rare labels count as much."
    )
    return Finding("imbalance", few, (), words)


def _of_tokens(tokens: Tokens) -> list[Finding | None]:
    unknown, cut = tokens.unknown_share, tokens.truncated_share
    found: list[Finding | None] = []
    if unknown > UNKNOWN_SHARE:
        words = (
            f"The model's tokenizer does not know {_percent(unknown)} of the tokens; "
            "is the model made for this language?"
        )
        found.append(Finding("unknown_tokens", tokens.unknown, (), words))
    elif tokens.pieces > PIECES:
        words = (
            f"The model's tokenizer cuts a word into {tokens.pieces:.1f} pieces on average (about 1.1 to 1.5 "
            "where it knows the words): is the model made for this language and field?"
        )
        found.append(Finding("broken_words", len(tokens.lengths), (), words))
    if cut > TRUNCATED_SHARE:
        words = f"{_percent(cut)} of the texts are longer than {tokens.max_length} tokens and lose their end."
        long = sum(length > tokens.max_length for length in tokens.lengths)
        found.append(Finding("truncated", long, (), words))
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %"


def _label_names(rows: pd.DataFrame, problem_type: str) -> set[str]:
    return {name for label in rows["label"] for name in names_of(label, problem_type)}


def _without_empty(splits: Frames, problem_type: str) -> Frames:
    return {role: rows[~missing(rows)] for role, rows in splits.items()}


def _without_conflicts(splits: Frames, problem_type: str) -> Frames:
    return {
        role: rows if role == "test" else rows[~rows["key"].isin(_conflicting(rows))]
        for role, rows in splits.items()
    }


def _without_duplicates(splits: Frames, problem_type: str) -> Frames:
    return {role: rows[~_repeated(rows)] for role, rows in splits.items()}


def _without_leakage(splits: Frames, problem_type: str) -> Frames:
    judged = dict(judged_texts(splits))
    return {role: rows[~rows["key"].isin(judged.get(role, set()))] for role, rows in splits.items()}


def _without_small_classes(splits: Frames, problem_type: str) -> Frames:
    """Without the rows of these labels; a row of several loses only the label, unless it was its last."""
    small = small_labels(splits, problem_type)
    if problem_type == SINGLE:
        return {role: rows[~_has_any(rows, small, problem_type)] for role, rows in splits.items()}
    kept = {}
    for role, rows in splits.items():
        had = _has_any(rows, small, problem_type)
        labels = [
            tuple(n for n in y if n not in small) if h else y for y, h in zip(rows["label"], had, strict=True)
        ]
        rows = rows.assign(label=pd.Series(labels, index=rows.index, dtype=object))
        kept[role] = rows[~(had & (rows["label"].map(len) == 0))] if small else rows
    return kept


_REMEDIES: dict[str, Callable[[Frames, str], Frames]] = {
    "label_spelling": with_one_spelling,
    "empty": _without_empty,
    "conflicts": _without_conflicts,
    "duplicates": _without_duplicates,
    "leakage": _without_leakage,
    "small_classes": _without_small_classes,
}
