"""Run a model over texts in batches of similar length that hold about the same number of tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from peft_core.data.labelled import truncate_text
from peft_core.errors import ModelError
from peft_core.progress import no_progress

BATCH_TEXTS = 256  # most texts of a batch
TOKENIZED_TEXTS = 500  # texts per call of the tokenizer
# Tokens of a padded batch: on a CPU as many as its cache holds of the widest layer, elsewhere more.
CPU_TOKENS, OTHER_TOKENS = 1024, 16384


def batched_logits(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    progress: Callable[[float], None] = no_progress,
    *,
    text_pairs: Sequence[str] | None = None,
) -> np.ndarray:
    """Return a classifier's logits, float32 (texts, labels), in the order of the texts.

    Args:
        model: The classifier.
        tokenizer: Its tokenizer.
        texts: At least one text.
        max_length: Tokens after which a text is truncated.
        progress: Called with the share of tokens done, from 0 to 1.
        text_pairs: The second text of each row.

    Raises:
        ModelError: If a logit is NaN or infinite.
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
    """Raise ModelError if a logit is NaN or infinite."""
    invalid = int((~np.isfinite(logits)).any(-1).sum()) if len(logits) else 0
    if invalid:
        raise ModelError(
            f"The model's outputs are not finite for {invalid:,} of {len(logits):,} texts: its training "
            "diverged or a file is damaged; train again with a lower learning rate."
        )


def batched_outputs(
    outputs: Callable[[Any], torch.Tensor],
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    progress: Callable[[float], None] = no_progress,
    *,
    device: torch.device,
    text_pairs: Sequence[str] | None = None,
) -> np.ndarray:
    """Apply `outputs` to each padded batch; return float32 (texts, width) in the order of the texts.

    `outputs` maps a batch to a tensor of shape (texts in the batch, width). The other arguments are those of
    `batched_logits`.
    """
    rows = _tokenized(tokenizer, texts, text_pairs, max_length, progress)
    lengths = np.array([len(ids) for ids in rows["input_ids"]], dtype=np.int64)
    out, done = None, 0
    for indices in batches(lengths, CPU_TOKENS if device.type == "cpu" else OTHER_TOKENS):
        batch = tokenizer.pad({key: [rows[key][i] for i in indices] for key in rows}, return_tensors="pt")
        with torch.inference_mode():
            batch_outputs = outputs(batch.to(device)).float().cpu().numpy()
        out = np.empty((len(texts), batch_outputs.shape[1]), dtype=np.float32) if out is None else out
        out[indices] = batch_outputs
        done += int(lengths[indices].sum())
        progress(done / int(lengths.sum()))
    assert out is not None  # there is at least one text
    return out


def _tokenized(
    tokenizer: Any,
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    max_length: int,
    progress: Callable[[float], None],
) -> dict[str, list[list[int]]]:
    """Return unpadded model inputs by name; TOKENIZED_TEXTS per call, so that progress can interrupt it."""
    sides = [texts] if text_pairs is None else [texts, text_pairs]
    rows: dict[str, list[list[int]]] = {}
    for start in range(0, len(texts), TOKENIZED_TEXTS):
        truncated = [
            [truncate_text(text, max_length) for text in side[start : start + TOKENIZED_TEXTS]]
            for side in sides
        ]
        for name, values in tokenizer(*truncated, truncation=True, max_length=max_length).items():
            rows.setdefault(name, []).extend(values)
        if start:
            progress(0.0)
    return rows


def batches(
    lengths: ArrayLike, max_tokens: int = CPU_TOKENS, max_texts: int = BATCH_TEXTS
) -> Iterator[np.ndarray]:
    """Yield the indices of each batch's texts, longest first.

    A padded batch holds at most `max_tokens`; a longer text is a batch of its own.

    Args:
        lengths: Tokens of each text.
        max_tokens: Most tokens of a padded batch.
        max_texts: Most texts of a batch.
    """
    token_counts = np.asarray(lengths)
    order, start = np.argsort(-token_counts, kind="stable"), 0
    while start < len(order):
        longest = max(1, int(token_counts[order[start]]))
        stop = start + max(1, min(max_texts, max_tokens // longest))
        yield order[start:stop]
        start = stop
