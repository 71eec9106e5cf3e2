"""What the audit finds, with counts, examples and remedies; and what each remedy leaves and records."""

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


def found(
    train: list, kind: str = SINGLE, tokens: TokenStatistics | None = None, **others: list
) -> dict[str, Finding]:
    splits = {"train": rows(train), **{role: rows(pairs, f"{role}.csv") for role, pairs in others.items()}}
    return {finding.kind: finding for finding in audit(splits, kind, tokens)}


def left(remedy: str, train: list, kind: str = SINGLE, **others: list) -> tuple[dict, list]:
    splits = {"train": rows(train), **{role: rows(pairs) for role, pairs in others.items()}}
    kept, dropped = apply_remedies(splits, (remedy,), kind)
    return {role: frame["text"].tolist() for role, frame in kept.items()}, dropped


def test_clean_rows_have_no_findings() -> None:
    assert found(CLEAN) == {}
    assert apply_remedies({"train": rows(CLEAN)}, tuple(REMEDIES), SINGLE)[1] == []


def test_rows_without_text_or_label() -> None:
    bad = [*CLEAN, ("", "yes"), (" ", "no"), ("Fine.", None)]
    finding = found(bad)["empty"]
    assert (finding.count, finding.remedy) == (3, "empty")
    assert finding.examples[2] == "train.csv row 10: “Fine.” no label"
    texts, dropped = left("empty", bad)
    assert texts["train"] == [text for text, _ in CLEAN]
    assert dropped == [{"remedy": "empty", "split": "train", "rows": 3, "labels": []}]


def test_repeated_rows() -> None:
    bad = [*CLEAN, CLEAN[0], (CLEAN[1][0].upper() + " ", "yes")]
    finding = found(bad)["duplicates"]
    assert (finding.count, finding.remedy) == (2, "duplicates")
    assert "2 rows" in finding.sentence and "1 of them letter for letter" in finding.sentence
    assert "conflicts" not in found(bad)
    texts, dropped = left("duplicates", bad)
    assert texts["train"] == [text for text, _ in CLEAN]
    assert dropped[0]["rows"] == 2


def test_the_same_text_with_different_labels() -> None:
    bad = [*CLEAN, (CLEAN[0][0], "no")]
    finding = found(bad)["conflicts"]
    assert (finding.count, finding.remedy) == (2, "conflicts")
    texts, dropped = left("conflicts", bad)
    assert CLEAN[0][0] not in texts["train"] and len(texts["train"]) == 5
    assert dropped[0]["rows"] == 2
    assert "conflicts" in found([("a b", ("x", "y")), ("A B", ("x",))], MULTI)
    assert "conflicts" not in found([("a b", ("x", "y")), ("A B", ("y", "x"))], MULTI)


def test_texts_that_are_also_judged_on() -> None:
    test = [("A TEXT about tea.", "yes"), ("Else.", "no")]
    finding = found(CLEAN, test=test)["leakage"]
    assert (finding.count, finding.remedy) == (1, "leakage")
    texts, dropped = left("leakage", CLEAN, test=test, validation=[("else.", "no"), ("More.", "yes")])
    assert len(texts["train"]) == 5 and texts["validation"] == ["More."] and len(texts["test"]) == 2
    assert [(one["split"], one["rows"]) for one in dropped] == [("train", 1), ("validation", 1)]


def test_labels_too_small_to_split() -> None:
    bad = [*CLEAN, ("Once.", "maybe"), ("once. ", "maybe")]
    finding = found(bad)["small_classes"]
    assert (finding.count, finding.remedy) == (2, "small_classes")
    assert "'maybe'" in finding.sentence
    texts, dropped = left("small_classes", bad)
    assert texts["train"] == [text for text, _ in CLEAN]
    assert dropped == [{"remedy": "small_classes", "split": "train", "rows": 2, "labels": ["maybe"]}]
    assert "small_classes" not in found(bad, test=CLEAN), "with test rows of its own, one row may be learned"
    assert found(CLEAN, test=[("New.", "other")])["small_classes"].count == 1


def test_a_small_label_of_several_leaves_the_row_its_others() -> None:
    many = [(f"Text {i}", ("a",) if i % 2 else ("a", "b")) for i in range(6)]
    kept, dropped = apply_remedies(
        {"train": rows([*many, ("Both", ("a", "rare")), ("Only", ("rarer",))])}, ("small_classes",), MULTI
    )
    assert kept["train"]["label"].tolist()[-1] == ("a",)
    assert "Only" not in kept["train"]["text"].tolist()
    assert dropped == [{"remedy": "small_classes", "split": "train", "rows": 1, "labels": ["rare", "rarer"]}]


def test_short_texts_and_imbalance() -> None:
    finding = found([*CLEAN, ("ok", "yes")])["short"]
    assert (finding.count, finding.remedy) == (1, None)
    many = [(f"Text {i}", "yes") for i in range(40)] + [(f"Other {i}", "no") for i in range(4)]
    assert "'yes' has 40 rows and 'no' only 4" in found(many)["imbalance"].sentence
    assert "imbalance" not in found(many[:30] + many[-4:])


def test_tokens_of_another_language_and_cut_texts() -> None:
    strange = found(CLEAN, tokens=TokenStatistics([10, 30], unknown=4, fertility=1.2, max_length=16))
    assert "10 % of the tokens" in strange["unknown_tokens"].sentence
    assert "50 % of the texts are longer than 16 tokens" in strange["truncated"].sentence
    broken = found(CLEAN, tokens=TokenStatistics([10, 12], unknown=0, fertility=1.92, max_length=16))
    assert "into 1.9 pieces" in broken["broken_words"].sentence
    assert found(CLEAN, tokens=TokenStatistics([10, 12], unknown=0, fertility=1.2, max_length=16)) == {}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_every_remedy_works_on_every_task(remedy: str) -> None:
    several = [(text, (label, "both")) for text, label in CLEAN]
    numbers = [(text, float(len(text))) for text, _ in CLEAN]
    for kind, train in ((SINGLE, CLEAN), (MULTI, several), (REGRESSION, numbers)):
        assert left(remedy, train, kind, test=train[:0])[0]["train"] == [text for text, _ in CLEAN]
