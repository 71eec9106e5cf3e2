"""Tests of audit findings (counts, examples, remedies) and of the rows that each remedy drops and records."""

from typing import Any

import pandas as pd
import pytest

from peft_core.config import REMEDIES
from peft_core.data.audit import Finding, TokenStatistics, apply_remedies, audit
from peft_core.data.columns import MULTI, REGRESSION, SINGLE
from peft_core.data.text_keys import text_key

CLEAN = [
    ("A text about tea.", "yes"), ("A text about rain.", "yes"), ("A text about ink.", "yes"),
    ("A text on tea.", "no"), ("A text on rain.", "no"), ("A text on ink.", "no"),
]  # fmt: skip


def rows(pairs: list[tuple[Any, Any]], file: str = "train.csv") -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "text": pd.Series([text for text, _ in pairs], dtype=object),
            "label": pd.Series([label for _, label in pairs], dtype=object),
            "key": pd.Series([text_key(text) for text, _ in pairs], dtype=object),
        }
    )
    frame.index = pd.MultiIndex.from_arrays([[file] * len(pairs), range(2, len(pairs) + 2)])
    return frame


def audit_findings(
    train: list, kind: str = SINGLE, tokens: TokenStatistics | None = None, **other_splits: list
) -> dict[str, Finding]:
    splits = {
        "train": rows(train),
        **{role: rows(pairs, f"{role}.csv") for role, pairs in other_splits.items()},
    }
    return {finding.kind: finding for finding in audit(splits, kind, tokens)}


def apply_remedy(remedy: str, train: list, kind: str = SINGLE, **other_splits: list) -> tuple[dict, list]:
    splits = {"train": rows(train), **{role: rows(pairs) for role, pairs in other_splits.items()}}
    remaining, dropped = apply_remedies(splits, (remedy,), kind)
    return {role: frame["text"].tolist() for role, frame in remaining.items()}, dropped


def test_clean_rows_have_no_findings() -> None:
    assert audit_findings(CLEAN) == {}
    assert apply_remedies({"train": rows(CLEAN)}, tuple(REMEDIES), SINGLE)[1] == []


def test_empty_rows_are_reported_and_dropped() -> None:
    bad = [*CLEAN, ("", "yes"), (" ", "no"), ("Fine.", None)]
    finding = audit_findings(bad)["empty"]
    assert (finding.count, finding.remedy) == (3, "empty")
    assert finding.examples[2] == "train.csv row 10: “Fine.” no label"
    texts, dropped = apply_remedy("empty", bad)
    assert texts["train"] == [text for text, _ in CLEAN]
    assert dropped == [{"remedy": "empty", "split": "train", "rows": 3, "labels": []}]


def test_duplicate_rows_are_reported_and_dropped() -> None:
    bad = [*CLEAN, CLEAN[0], (CLEAN[1][0].upper() + " ", "yes")]
    finding = audit_findings(bad)["duplicates"]
    assert (finding.count, finding.remedy) == (2, "duplicates")
    assert "2 rows" in finding.sentence and "1 of them exactly" in finding.sentence
    assert "conflicts" not in audit_findings(bad)
    texts, dropped = apply_remedy("duplicates", bad)
    assert texts["train"] == [text for text, _ in CLEAN]
    assert dropped[0]["rows"] == 2


def test_conflicting_labels_are_reported_and_dropped() -> None:
    bad = [*CLEAN, (CLEAN[0][0], "no")]
    finding = audit_findings(bad)["conflicts"]
    assert (finding.count, finding.remedy) == (2, "conflicts")
    texts, dropped = apply_remedy("conflicts", bad)
    assert CLEAN[0][0] not in texts["train"] and len(texts["train"]) == 5
    assert dropped[0]["rows"] == 2
    assert "conflicts" in audit_findings([("a b", ("x", "y")), ("A B", ("x",))], MULTI)
    assert "conflicts" not in audit_findings([("a b", ("x", "y")), ("A B", ("y", "x"))], MULTI)


def test_leaked_evaluation_texts_are_reported_and_dropped() -> None:
    test = [("A TEXT about tea.", "yes"), ("Else.", "no")]
    finding = audit_findings(CLEAN, test=test)["leakage"]
    assert (finding.count, finding.remedy) == (1, "leakage")
    texts, dropped = apply_remedy("leakage", CLEAN, test=test, validation=[("else.", "no"), ("More.", "yes")])
    assert len(texts["train"]) == 5 and texts["validation"] == ["More."] and len(texts["test"]) == 2
    assert [(entry["split"], entry["rows"]) for entry in dropped] == [("train", 1), ("validation", 1)]


def test_small_classes_are_reported_and_dropped() -> None:
    bad = [*CLEAN, ("Once.", "maybe"), ("once. ", "maybe")]
    finding = audit_findings(bad)["small_classes"]
    assert (finding.count, finding.remedy) == (2, "small_classes")
    assert "'maybe'" in finding.sentence
    texts, dropped = apply_remedy("small_classes", bad)
    assert texts["train"] == [text for text, _ in CLEAN]
    assert dropped == [{"remedy": "small_classes", "split": "train", "rows": 2, "labels": ["maybe"]}]
    assert "small_classes" not in audit_findings(bad, test=CLEAN), (
        "with test rows of its own, one row may be learned"
    )
    assert audit_findings(CLEAN, test=[("New.", "other")])["small_classes"].count == 1


def test_small_class_remedy_keeps_other_labels_of_row() -> None:
    many = [(f"Text {i}", ("a",) if i % 2 else ("a", "b")) for i in range(6)]
    remaining, dropped = apply_remedies(
        {"train": rows([*many, ("Both", ("a", "rare")), ("Only", ("rarer",))])}, ("small_classes",), MULTI
    )
    assert remaining["train"]["label"].tolist()[-1] == ("a",)
    assert "Only" not in remaining["train"]["text"].tolist()
    assert dropped == [{"remedy": "small_classes", "split": "train", "rows": 1, "labels": ["rare", "rarer"]}]


def test_short_texts_and_imbalance_are_reported() -> None:
    finding = audit_findings([*CLEAN, ("ok", "yes")])["short"]
    assert (finding.count, finding.remedy) == (1, None)
    many = [(f"Text {i}", "yes") for i in range(40)] + [(f"Other {i}", "no") for i in range(4)]
    assert "'yes' has 40 rows and 'no' only 4" in audit_findings(many)["imbalance"].sentence
    assert "imbalance" not in audit_findings(many[:30] + many[-4:])


def test_unknown_tokens_and_truncated_texts_are_reported() -> None:
    strange = audit_findings(CLEAN, tokens=TokenStatistics([10, 30], unknown=4, fertility=1.2, max_length=16))
    assert "10 % of the tokens" in strange["unknown_tokens"].sentence
    assert "50 % of the texts are longer than 16 tokens" in strange["truncated"].sentence
    broken = audit_findings(CLEAN, tokens=TokenStatistics([10, 12], unknown=0, fertility=1.92, max_length=16))
    assert "into 1.9 tokens" in broken["broken_words"].sentence
    assert (
        audit_findings(CLEAN, tokens=TokenStatistics([10, 12], unknown=0, fertility=1.2, max_length=16)) == {}
    )


@pytest.mark.parametrize("remedy", REMEDIES)
def test_remedy_of_clean_rows_keeps_all_for_each_problem_type(remedy: str) -> None:
    several = [(text, (label, "both")) for text, label in CLEAN]
    numbers = [(text, float(len(text))) for text, _ in CLEAN]
    for kind, train in ((SINGLE, CLEAN), (MULTI, several), (REGRESSION, numbers)):
        assert apply_remedy(remedy, train, kind, test=train[:0])[0]["train"] == [text for text, _ in CLEAN]
