"""A model in a form that answers many texts sooner, where this machine gains by it and the answers stay."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from peft_core.errors import MergeError
from peft_core.inference.loading import ADAPTER, MERGED, merged_weights
from peft_core.inference.predictor import Predictor
from peft_core.machine import GAIN, gains_by_half, seconds
from peft_core.methods import METHODS, bits_of
from peft_core.modules import head_modules
from peft_core.problems import label_flips
from peft_core.quantise import FULL

WORTH_IT = 500  # rows from which the search for a quicker form pays
SAMPLE = 64  # rows on which a form is judged
MERGED_DIFFERENCE = 1e-4  # the most that weights with the adapter in them may move a logit
HALF_DIFFERENCE = 0.05  # the same of half-width numbers, in standard deviations of the logits


def quicker(
    predictor: Predictor, texts: Sequence[str], text_pairs: Sequence[str] | None = None
) -> tuple[Predictor, dict[str, Any]]:
    """A predictor for many texts like these, and what it is: `merged`, `dtype`, and where that is bfloat16
    `speed_ratio`, `max_logit_diff` from float32, `labels_changed` and the number of `rows` that this was
    measured on.

    The adapter goes into a copy of the weights where the method can merge and the logits stay. The weights go
    to bfloat16, the head apart, where this machine multiplies such matrices faster, the texts are read at
    least GAIN times as fast, and no logit moves by more than HALF_DIFFERENCE: a label then changes only where
    two were as good as equal. A quantised base, and a probe that stands in for one, stay as they are. The
    given predictor is left as it is.
    """
    facts: dict[str, Any] = {"merged": predictor.variant == MERGED, "dtype": "float32"}
    if predictor.standing_in or bits_of(predictor.run.config().to_dict()) != FULL:
        return predictor, facts
    logits, before = _timed(predictor, texts, text_pairs)
    merged = _merged(predictor)
    if merged is not None and _difference(merged.logits(texts, text_pairs), logits) <= MERGED_DIFFERENCE:
        predictor, facts = merged, {**facts, "merged": True}
    if not gains_by_half(predictor.model.device):
        return predictor, facts
    half = _with_model(predictor, _in_half(predictor.model))
    try:
        found, after = _timed(half, texts, text_pairs)
    except RuntimeError:  # an architecture with an operation that bfloat16 does not have
        return predictor, facts
    difference = _difference(found, logits)
    if difference > HALF_DIFFERENCE * float(logits.std()) or before / after < GAIN:
        return predictor, facts
    return half, {
        **facts,
        "dtype": "bfloat16",
        "rows": len(texts),
        "speed_ratio": before / after,
        "max_logit_diff": difference,
        "labels_changed": label_flips(predictor.classifier.problem_type, logits, found),
    }


def _merged(predictor: Predictor) -> Predictor | None:
    """The adapter in a copy of the weights; None where it is in them, or cannot be."""
    method = METHODS[predictor.run.config().method]
    if predictor.variant != ADAPTER or method.peft_config is None or method.cannot_merge:
        return None
    try:
        return _with_model(predictor, merged_weights(predictor.run, copy.deepcopy(predictor.model)))
    except MergeError:
        return None


def _in_half(model: nn.Module) -> nn.Module:
    """A copy in bfloat16 whose head stays in float32: a rounded logit would be a step of 0.03 at 4."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    for name in head_modules(half):
        head = half.get_submodule(name).float()
        head.register_forward_pre_hook(lambda _, given: tuple(one.float() for one in given))
    return half.eval()


def _timed(
    predictor: Predictor, texts: Sequence[str], text_pairs: Sequence[str] | None
) -> tuple[np.ndarray, float]:
    """Logits, and the seconds that they took when asked a second time."""
    logits = predictor.logits(texts, text_pairs)
    return logits, seconds(lambda: predictor.logits(texts, text_pairs))


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest, and infinite if a number is none."""
    return float(np.nan_to_num(np.abs(one - other), nan=np.inf).max())


def _with_model(predictor: Predictor, model: nn.Module) -> Predictor:
    other = copy.copy(predictor)
    other.model = model.eval()
    return other
