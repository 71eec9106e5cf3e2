"""Batches of about as many tokens each: every text once, in an order that seed and epoch decide."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_core.training.batches import MOST_TEXTS, TokenBatches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


def reviews(rows: int = 3000) -> list[int]:
    return np.random.default_rng(0).gamma(4.0, 7.0, rows).astype(int).clip(3, 128).tolist()


@given(LENGTHS, st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_holds_every_text_once_in_as_many_batches_as_of_equal_size(
    lengths: list[int], size: int, epoch: int
) -> None:
    batches = TokenBatches(lengths, size, seed=1)
    batches.set_epoch(epoch)
    found = list(batches)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert len(found) == len(batches) == math.ceil(len(lengths) / size)
    assert all(found)


@given(LENGTHS, st.integers(1, 20), st.integers(2, 4))
def test_processes_share_the_texts_in_as_many_batches_each(
    lengths: list[int], size: int, processes: int
) -> None:
    shares = [TokenBatches(lengths, size, 1, processes, rank) for rank in range(processes)]
    found = [list(share) for share in shares]
    assert {len(share) for share in found} == {len(shares[0])}
    seen = sorted(i for share in found for batch in share for i in batch)
    assert set(seen) == set(range(len(lengths)))
    assert len(seen) == max(len(lengths), processes * len(shares[0]))  # twice only where texts are few
    assert all(batch for share in found for batch in share)


def test_batches_cost_about_the_same_and_hold_little_padding() -> None:
    lengths = np.array(reviews())
    batches = [lengths[batch] for batch in TokenBatches(lengths.tolist(), 16, seed=3)]
    costs = np.array([batch.max() * len(batch) for batch in batches])
    assert costs.max() <= 1.1 * costs.mean()
    assert costs.sum() <= 1.08 * lengths.sum()
    assert max(map(len, batches)) <= MOST_TEXTS * 16
    assert batches[0].max() == lengths.max()  # what memory must hold is known at the first step


def test_processes_work_equally_long() -> None:
    """Each waits after each batch for the others."""
    lengths = np.array(reviews())
    costs = np.array(
        [
            [lengths[batch].max() * len(batch) for batch in TokenBatches(lengths.tolist(), 16, 3, 2, rank)]
            for rank in range(2)
        ]
    )
    assert (costs.max(0) - costs.mean(0)).sum() <= 0.002 * costs.sum()
    firsts = [lengths[next(iter(TokenBatches(lengths.tolist(), 16, 3, 2, rank)))] for rank in range(2)]
    assert max(batch.max() for batch in firsts) == lengths.max()


def test_the_order_is_that_of_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = TokenBatches(reviews(400), 16, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed, epoch in ((1, 0), (1, 1), (7, 0))}) == 3


@pytest.mark.parametrize("size", [1, 7, 500])
def test_lengths_are_mixed_over_an_epoch(size: int) -> None:
    """Long and short batches take turns, so that a model never learns from one kind alone for long."""
    lengths = np.array(reviews(1000))
    found = list(TokenBatches(lengths.tolist(), size, seed=2))
    if len(found) < 20:
        return
    means = np.array([lengths[batch].mean() for batch in found[1:]])
    places = np.arange(len(means))
    assert abs(np.corrcoef(places, means)[0, 1]) < 0.3
