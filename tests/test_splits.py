"""Held-out rows: seeded, stratified within a row, and never a text on two sides."""

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
def test_each_label_gives_its_share_within_a_row(counts: dict[str, int], share: float, seed: int) -> None:
    labels = [label for label, count in counts.items() for _ in range(count)]
    held = hold_out([f"text {i}" for i in range(len(labels))], labels, share, seed, at_least=1)
    taken = Counter(labels[i] for i in held)
    for label, count in counts.items():
        assert abs(taken[label] - share * count) <= 1
        assert taken[label] >= (count > 1)
        assert taken[label] < count, "a label stays to be learned"


@quick
@given(
    texts=st.lists(
        st.sampled_from(["Good", "good ", "GOOD", "bad", "Bad", "ﬁne", "fine", "so so"]), min_size=1
    ),
    seed=st.integers(0, 99),
)
def test_no_text_stands_on_two_sides(texts: list[str], seed: int) -> None:
    keys = [text_key(text) for text in texts]
    held = set(hold_out(keys, [len(key) % 2 for key in keys], 0.3, seed, at_least=1))
    sides = [{key for i, key in enumerate(keys) if (i in held) is side} for side in (True, False)]
    assert not sides[0] & sides[1]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_split_of_a_file_leaks_a_text(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.text("abC xY", min_size=1).filter(str.strip), min_size=12, max_size=40))
    labels = [data.draw(st.sampled_from(["yes", "no"])) for _ in texts[8:]]
    path = tmp_path_factory.getbasetemp() / "leak.csv"
    rows = [(f"anchor {i}", ["yes", "no"][i % 2]) for i in range(8)]
    write_csv(path, [*rows, *zip(texts[8:], labels, strict=True)])
    config = {"dataset_name": str(path), "split_seed": data.draw(st.integers(0, 9))}
    found = load_labeled_splits(TrainConfig.from_dict(config))
    keys = [set(map(text_key, side["text"][:])) for side in (found.train, found.validation, found.eval)]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert sum(map(len, (found.train, found.validation, found.eval))) == len(texts)


def test_the_choice_is_of_the_seed_and_the_texts_not_of_their_order() -> None:
    keys, labels = [f"text {i}" for i in range(100)], ["a", "b"] * 50
    held = {keys[i] for i in hold_out(keys, labels, 0.2, 1)}
    order = random.Random(0).sample(range(100), 100)
    again = hold_out([keys[i] for i in order], [labels[i] for i in order], 0.2, 1)
    assert {keys[order[i]] for i in again} == held
    assert {keys[i] for i in hold_out(keys, labels, 0.2, 2)} != held


def test_strata() -> None:
    assert strata(["a", "b"], SINGLE) == ["a", "b"]
    assert strata([("a", "b"), ("a",), ("a", "c"), ()], MULTI) == ["b", "a", "c", ""]
    tenths = Counter(strata([float(i) for i in range(100)], REGRESSION))
    assert len(tenths) == 10 and set(tenths.values()) == {10}
    assert len(set(strata([1.0, 2.0, 3.0, 4.0, 5.0] * 20, REGRESSION))) == 5


def test_text_key_forgets_case_spaces_and_form() -> None:
    assert text_key(" Good\n FILM ") == text_key("good film") == text_key("ｇｏｏｄ film")
    assert pair_key("A ", "b") == ("a", "b")
