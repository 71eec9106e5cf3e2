"""Batches of texts of similar length with about equal cost, in an order determined by seed and epoch.

Exported scripts contain the source of this module's constants, functions and `TokenBatches`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import DataCollatorWithPadding

GROUP = 50  # batches whose texts are sorted together: more makes less padding, fewer mixes the texts better
MOST_TEXTS = 4  # times the mean that a batch of short texts may hold


class TokenBatches(Sampler[list[int]]):
    """The places of the texts of each batch of an epoch.

    Every batch has about as many tokens, padding included, as the others, so that steps take equally long and
    processes that share an epoch wait for none. An epoch has as many batches as with `batch_size` texts each,
    which is therefore their mean, rounded up to a multiple of `processes`; the process of number `rank` takes
    its share of them. The batch with the longest text comes first: if memory is short, that is known at
    once.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, processes: int = 1, rank: int = 0
    ) -> None:
        super().__init__()
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.mean_size, self.seed, self.epoch = batch_size, seed, 0
        self.processes, self.rank = processes, rank
        self.batches = processes * math.ceil(math.ceil(len(self.lengths) / batch_size) / processes)

    def __len__(self) -> int:
        return self.batches // self.processes

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration is of; Trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = grouped(self.lengths, GROUP * self.mean_size, generator)
        if len(order) < self.batches:  # more processes than texts: some are read twice
            order = np.resize(order, self.batches)
        stops = even_stops(self.lengths[order], self.batches, MOST_TEXTS * self.mean_size)
        rows_of_batches = [part.tolist() for part in np.split(order, stops)]
        longest = int(self.lengths[order].argmax())
        first = int(np.searchsorted(stops, longest, side="right"))
        rounds = self._rounds(rows_of_batches)
        shuffled = [rounds[i] for i in torch.randperm(len(rounds), generator=generator).tolist()]
        shuffled.sort(key=lambda batches: first not in batches)
        yield from (rows_of_batches[batches[self.rank]] for batches in shuffled)

    def _rounds(self, rows_of_batches: list[list[int]]) -> list[list[int]]:
        """Return the batches that the processes take at the same time: those of the most similar cost."""
        order = list(range(len(rows_of_batches)))
        if self.processes > 1:
            order.sort(key=lambda i: len(rows_of_batches[i]) * int(self.lengths[rows_of_batches[i]].max()))
        return [order[i : i + self.processes] for i in range(0, len(order), self.processes)]


class UnpaddedCollator(DataCollatorWithPadding):
    """Pad a batch to its longest text, and omit an attention mask that would mask nothing."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(features)
        if bool(batch["attention_mask"].all()):
            del batch["attention_mask"]
        return batch


def grouped(lengths: np.ndarray, group: int, generator: torch.Generator) -> np.ndarray:
    """A random order in which each run of `group` texts is sorted, up and down in turn so that they join."""
    order = torch.randperm(len(lengths), generator=generator).numpy()
    parts = []
    for start in range(0, len(order), group):
        part = order[start : start + group]
        part = part[np.argsort(lengths[part], kind="stable")]
        parts.append(part[::-1] if (start // group) % 2 else part)
    return np.concatenate(parts) if parts else order


def even_stops(lengths: np.ndarray, batches: int, most: int) -> np.ndarray:
    """Return where to split the texts, so that the most expensive batch is as cheap as possible."""
    low, high = int(lengths.max()), int(lengths.max()) * len(lengths)
    while low < high:  # the smallest budget that does with so many batches
        middle = (low + high) // 2
        if len(filled(lengths, middle, most)) <= batches:
            high = middle
        else:
            low = middle + 1
    stops = filled(lengths, low, most)
    while len(stops) < batches:  # a budget one token smaller made more: halve the largest batches
        sizes = np.diff(stops, prepend=0)
        at = int(sizes.argmax())
        stops.insert(at, stops[at] - int(sizes[at]) // 2)
    return np.array(stops[:-1], dtype=np.int64)


def filled(lengths: np.ndarray, budget: int, most: int) -> list[int]:
    """The end of each batch if every one takes texts for as long as it stays within the budget."""
    stops, start, longest = [], 0, 0
    for i, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if i > start and (longest * (i - start + 1) > budget or i - start >= most):
            stops.append(i)
            start, longest = i, length
    return [*stops, len(lengths)]
