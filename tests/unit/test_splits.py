"""Held-out rows: seeded, stratified to within one row, and no text in two splits."""

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import write_csv

from peft_core.config import TrainConfig
from peft_core.data.columns import MULTI, REGRESSION, SINGLE
from peft_core.data.labelled import load_labeled_splits
from peft_core.data.splits import hold_out, strata
from peft_core.data.text_keys import pair_key, text_key

quick = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
counts = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60), min_size=1)


@quick
@given(counts=counts, share=st.floats(0.05, 0.5), seed=st.integers(0, 2**32 - 1))
def test_hold_out_takes_share_of_each_label_within_one_row(
    counts: dict[str, int], share: float, seed: int
) -> None:
    labels = [label for label, count in counts.items() for _ in range(count)]
    held_out = hold_out([f"text {i}" for i in range(len(labels))], labels, share, seed, at_least=1)
    held_out_counts = Counter(labels[i] for i in held_out)
    for label, count in counts.items():
        assert abs(held_out_counts[label] - share * count) <= 1
        assert held_out_counts[label] >= (count > 1)
        assert held_out_counts[label] < count, "a label stays to be learned"


@quick
@given(
    texts=st.lists(
        st.sampled_from(["Good", "good ", "GOOD", "bad", "Bad", "ﬁne", "fine", "so so"]), min_size=1
    ),
    seed=st.integers(0, 99),
)
def test_hold_out_keeps_equal_texts_together(texts: list[str], seed: int) -> None:
    keys = [text_key(text) for text in texts]
    held_out = set(hold_out(keys, [len(key) % 2 for key in keys], 0.3, seed, at_least=1))
    sides = [{key for i, key in enumerate(keys) if (i in held_out) is side} for side in (True, False)]
    assert not sides[0] & sides[1]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_load_labeled_splits_of_file_shares_no_text(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.text("abC xY", min_size=1).filter(str.strip), min_size=12, max_size=40))
    labels = [data.draw(st.sampled_from(["yes", "no"])) for _ in texts[8:]]
    path = tmp_path_factory.getbasetemp() / "leak.csv"
    rows = [(f"anchor {i}", ["yes", "no"][i % 2]) for i in range(8)]
    write_csv(path, [*rows, *zip(texts[8:], labels, strict=True)])
    config = {"dataset_name": str(path), "split_seed": data.draw(st.integers(0, 9))}
    splits = load_labeled_splits(TrainConfig.from_dict(config))
    keys = [set(map(text_key, side["text"][:])) for side in (splits.train, splits.validation, splits.eval)]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert sum(map(len, (splits.train, splits.validation, splits.eval))) == len(texts)


def test_hold_out_depends_on_seed_and_texts_not_order() -> None:
    keys, labels = [f"text {i}" for i in range(100)], ["a", "b"] * 50
    held_out = {keys[i] for i in hold_out(keys, labels, 0.2, 1)}
    order = random.Random(0).sample(range(100), 100)
    reordered = hold_out([keys[i] for i in order], [labels[i] for i in order], 0.2, 1)
    assert {keys[order[i]] for i in reordered} == held_out
    assert {keys[i] for i in hold_out(keys, labels, 0.2, 2)} != held_out


def test_strata_of_each_problem_type_group_labels() -> None:
    assert strata(["a", "b"], SINGLE) == ["a", "b"]
    assert strata([("a", "b"), ("a",), ("a", "c"), ()], MULTI) == ["b", "a", "c", ""]
    tenths = Counter(strata([float(i) for i in range(100)], REGRESSION))
    assert len(tenths) == 10 and set(tenths.values()) == {10}
    assert len(set(strata([1.0, 2.0, 3.0, 4.0, 5.0] * 20, REGRESSION))) == 5


def test_text_key_ignores_case_spaces_and_unicode_form() -> None:
    assert text_key(" Good\n FILM ") == text_key("good film") == text_key("ｇｏｏｄ film")
    assert pair_key("A ", "b") == ("a", "b")
