"""Optimize a model for many texts where this machine gains speed and the predictions stay the same."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from peft_core.errors import MergeError
from peft_core.hardware import MIN_SPEEDUP, is_bfloat16_faster, measure_seconds
from peft_core.inference.loading import ADAPTER, MERGED, merged_weights
from peft_core.inference.predictor import Predictor
from peft_core.methods.registry import METHODS, bits_of
from peft_core.models.modules import head_modules
from peft_core.models.quantization import FULL
from peft_core.problem_types import label_flips

MIN_ROWS = 500  # rows from which optimizing pays
SAMPLE = 64  # rows on which an optimized model is checked
MERGED_DIFFERENCE = 1e-4  # largest difference of a logit that merging the adapter may cause
HALF_DIFFERENCE = 0.05  # the same for bfloat16, in standard deviations of the logits


def optimize_for_inference(
    predictor: Predictor, texts: Sequence[str], text_pairs: Sequence[str] | None = None
) -> tuple[Predictor, dict[str, Any]]:
    """Return a faster predictor for texts like these, or the same one, and a description of it.

    The adapter is merged into a copy of the weights if the method can merge and the logits stay the same. All
    weights but the head's are cast to bfloat16 if this machine multiplies such matrices faster, the texts are
    predicted at least MIN_SPEEDUP times as fast, and no logit changes by more than HALF_DIFFERENCE: a label
    then changes only where two are nearly equal. A quantized base and a probe are not changed, nor is the
    given predictor.

    Returns:
        The predictor, and `merged`, `dtype` and, for bfloat16, `speed_ratio`, `max_logit_diff` from float32,
        `labels_changed` and the number of `rows` measured.
    """
    facts: dict[str, Any] = {"merged": predictor.variant == MERGED, "dtype": "float32"}
    if predictor.fallback_note or bits_of(predictor.run.config().to_dict()) != FULL:
        return predictor, facts
    logits, seconds_before = _timed(predictor, texts, text_pairs)
    merged = _merged(predictor)
    if (
        merged is not None
        and _max_abs_difference(merged.logits(texts, text_pairs), logits) <= MERGED_DIFFERENCE
    ):
        predictor, facts = merged, {**facts, "merged": True}
    if not is_bfloat16_faster(predictor.model.device):
        return predictor, facts
    half = _with_model(predictor, _in_bfloat16(predictor.model))
    try:
        half_logits, seconds_after = _timed(half, texts, text_pairs)
    except RuntimeError:  # an operation of this architecture does not support bfloat16
        return predictor, facts
    difference = _max_abs_difference(half_logits, logits)
    if difference > HALF_DIFFERENCE * float(logits.std()) or seconds_before / seconds_after < MIN_SPEEDUP:
        return predictor, facts
    return half, {
        **facts,
        "dtype": "bfloat16",
        "rows": len(texts),
        "speed_ratio": seconds_before / seconds_after,
        "max_logit_diff": difference,
        "labels_changed": label_flips(predictor.classifier.problem_type, logits, half_logits),
    }


def _merged(predictor: Predictor) -> Predictor | None:
    """Return a predictor with the adapter merged into a copy; None if it is merged already or cannot be."""
    method = METHODS[predictor.run.config().method]
    if predictor.variant != ADAPTER or method.peft_config is None or method.cannot_merge:
        return None
    try:
        return _with_model(predictor, merged_weights(predictor.run, copy.deepcopy(predictor.model)))
    except MergeError:
        return None


def _in_bfloat16(model: nn.Module) -> nn.Module:
    """Return a bfloat16 copy whose head stays in float32: near 4, bfloat16 rounds logits to steps of 0.03."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    for name in head_modules(half):
        head = half.get_submodule(name).float()
        head.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))
    return half.eval()


def _timed(
    predictor: Predictor, texts: Sequence[str], text_pairs: Sequence[str] | None
) -> tuple[np.ndarray, float]:
    """Return the logits, and the seconds that a second computation takes."""
    logits = predictor.logits(texts, text_pairs)
    return logits, measure_seconds(lambda: predictor.logits(texts, text_pairs))


def _max_abs_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference; `inf` if any value is NaN."""
    return float(np.nan_to_num(np.abs(actual - expected), nan=np.inf).max())


def _with_model(predictor: Predictor, model: nn.Module) -> Predictor:
    changed = copy.copy(predictor)
    changed.model = model.eval()
    return changed
