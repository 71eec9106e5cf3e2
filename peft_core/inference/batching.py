"""Texts to raw outputs, in batches of like length that hold about the same number of tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from peft_core.data.labelled import cut
from peft_core.errors import ModelError
from peft_core.progress import unheard

BATCH_TEXTS = 256  # the most of a batch
TOKENIZED_TEXTS = 500  # at a time
# Tokens of a batch with its padding: on a CPU what its cache holds of the widest layer, elsewhere more.
CPU_TOKENS, OTHER_TOKENS = 1024, 16384


def batched_logits(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    progress: Callable[[float], None] = unheard,
    *,
    text_pairs: Sequence[str] | None = None,
) -> np.ndarray:
    """A classifier's raw outputs, float32 (texts, labels), in the order of the texts.

    Raises ModelError for outputs that are NaN or infinite: no label may be read from them.
    """
    logits = batched_outputs(
        lambda batch: model(**batch).logits,
        tokenizer,
        texts,
        max_length,
        progress,
        device=model.device,
        text_pairs=text_pairs,
    )
    check_finite(logits)
    return logits


def check_finite(logits: np.ndarray) -> None:
    """Raise ModelError if a raw output is NaN or infinite."""
    broken = int((~np.isfinite(logits)).any(-1).sum()) if len(logits) else 0
    if broken:
        raise ModelError(
            f"The model's outputs are not finite for {broken:,} of {len(logits):,} texts: its training "
            "diverged or a file is damaged; train again with a lower learning rate."
        )


def batched_outputs(
    outputs: Callable[[Any], torch.Tensor],
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    progress: Callable[[float], None] = unheard,
    *,
    device: torch.device,
    text_pairs: Sequence[str] | None = None,
) -> np.ndarray:
    """What `outputs` makes of each padded batch, (texts, width), as one float32 array in the texts' order."""
    rows = _tokenized(tokenizer, texts, text_pairs, max_length, progress)
    lengths = np.array([len(ids) for ids in rows["input_ids"]], dtype=np.int64)
    out, done = None, 0
    for chosen in batches(lengths, CPU_TOKENS if device.type == "cpu" else OTHER_TOKENS):
        batch = tokenizer.pad({key: [rows[key][i] for i in chosen] for key in rows}, return_tensors="pt")
        with torch.inference_mode():
            found = outputs(batch.to(device)).float().cpu().numpy()
        out = np.empty((len(texts), found.shape[1]), dtype=np.float32) if out is None else out
        out[chosen] = found
        done += int(lengths[chosen].sum())
        progress(done / int(lengths.sum()))
    return out


def _tokenized(
    tokenizer: Any,
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    max_length: int,
    progress: Callable[[float], None],
) -> dict[str, list[list[int]]]:
    """Unpadded tokens by name, some texts at a time: one call for many of them could not be interrupted."""
    sides = [texts] if text_pairs is None else [texts, text_pairs]
    rows: dict[str, list[list[int]]] = {}
    for start in range(0, len(texts), TOKENIZED_TEXTS):
        short = [[cut(text, max_length) for text in side[start : start + TOKENIZED_TEXTS]] for side in sides]
        for name, values in tokenizer(*short, truncation=True, max_length=max_length).items():
            rows.setdefault(name, []).extend(values)
        if start:
            progress(0.0)
    return rows


def batches(
    lengths: Sequence[int], most_tokens: int = CPU_TOKENS, most: int = BATCH_TEXTS
) -> Iterator[np.ndarray]:
    """The places of the texts, the longest first, cut so that a padded batch stays within `most_tokens`.

    A text longer than that is a batch of its own.
    """
    order, start = np.argsort(-np.asarray(lengths), kind="stable"), 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        stop = start + max(1, min(most, most_tokens // longest))
        yield order[start:stop]
        start = stop
