"""Texts to raw outputs, in batches of like length."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from peft_core.data.labelled import cut

BATCH_SIZE = 64


def batched_logits(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    max_length: int,
    progress: Callable[[float], None] = lambda share: None,
    *,
    text_pairs: Sequence[str] | None = None,
) -> np.ndarray:
    """Raw outputs, float32 (texts, labels) in the order given; batched by length, so little is padded."""
    sides = [texts] if text_pairs is None else [texts, text_pairs]
    short = [[cut(text, max_length) for text in side] for side in sides]
    rows = tokenizer(*short, truncation=True, max_length=max_length)
    order = np.argsort([-len(ids) for ids in rows["input_ids"]], kind="stable")
    out = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        batch = tokenizer.pad({key: [rows[key][i] for i in chosen] for key in rows}, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**batch.to(model.device)).logits
        out[chosen] = logits.float().cpu().numpy()
        progress(min(1.0, (start + BATCH_SIZE) / len(order)))
    return out
