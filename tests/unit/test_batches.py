"""Tests of batches with similar numbers of tokens: each text once, in an order set by seed and epoch."""

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
def test_epoch_has_each_text_once_in_expected_number_of_batches(
    lengths: list[int], size: int, epoch: int
) -> None:
    batches = TokenBatches(lengths, size, seed=1)
    batches.set_epoch(epoch)
    batch_list = list(batches)
    assert sorted(i for batch in batch_list for i in batch) == list(range(len(lengths)))
    assert len(batch_list) == len(batches) == math.ceil(len(lengths) / size)
    assert all(batch_list)


@given(LENGTHS, st.integers(1, 20), st.integers(2, 4))
def test_processes_share_texts_in_equal_numbers_of_batches(
    lengths: list[int], size: int, processes: int
) -> None:
    shares = [TokenBatches(lengths, size, 1, processes, rank) for rank in range(processes)]
    batch_lists = [list(share) for share in shares]
    assert {len(share) for share in batch_lists} == {len(shares[0])}
    indices = sorted(i for share in batch_lists for batch in share for i in batch)
    assert set(indices) == set(range(len(lengths)))
    assert len(indices) == max(len(lengths), processes * len(shares[0]))  # repeats only if too few texts
    assert all(batch for share in batch_lists for batch in share)


def test_batches_have_similar_cost_and_little_padding() -> None:
    lengths = np.array(reviews())
    batches = [lengths[batch] for batch in TokenBatches(lengths.tolist(), 16, seed=3)]
    costs = np.array([batch.max() * len(batch) for batch in batches])
    assert costs.max() <= 1.1 * costs.mean()
    assert costs.sum() <= 1.08 * lengths.sum()
    assert max(map(len, batches)) <= MOST_TEXTS * 16
    assert batches[0].max() == lengths.max()  # so that the peak memory is reached at the first step


def test_processes_have_equal_cost_per_batch() -> None:
    """Each process waits for the others after each batch."""
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


def test_batch_order_depends_only_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = TokenBatches(reviews(400), 16, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed, epoch in ((1, 0), (1, 1), (7, 0))}) == 3


@pytest.mark.parametrize("size", [1, 7, 500])
def test_lengths_are_mixed_over_an_epoch(size: int) -> None:
    """Long and short batches alternate, so that a model never trains long on one kind only."""
    lengths = np.array(reviews(1000))
    batches = list(TokenBatches(lengths.tolist(), size, seed=2))
    if len(batches) < 20:
        return
    means = np.array([lengths[batch].mean() for batch in batches[1:]])
    places = np.arange(len(means))
    assert abs(np.corrcoef(places, means)[0, 1]) < 0.3
