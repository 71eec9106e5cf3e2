"""Compare an optimized training step with the plain one on a few texts, to admit or reject the optimization.

Two kinds of batches are compared, because models take different code paths for them: one of texts of full
length without an attention mask, and one with padding.
"""

import logging
import math

import torch
from torch import nn

CHECKED_TEXTS = 4  # more would take more memory than training
LARGEST = 1_000_000  # elements of a parameter whose gradient is compared; larger ones add no information

Batch = dict[str, torch.Tensor]
logger = logging.getLogger(__name__)


class PlainStep:
    """The gradients of the plain step on a batch's first texts, on fewer if a GPU is short of memory."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        texts = CHECKED_TEXTS
        while True:
            first_texts = {name: tensor[:texts] for name, tensor in batch.items()}
            try:
                pad_token_id = getattr(model.config, "pad_token_id", None) or 0
                self.batches = mask_variants(first_texts, pad_token_id)
                self.gradients = [gradient(model, variant) for variant in self.batches]
                return
            except torch.OutOfMemoryError:
                if texts == 1:
                    raise
            texts //= 2

    def gradient_error(self, model: nn.Module) -> float:
        """Return the largest relative distance of the model's gradient from the plain one over the batches.

        The distance is in norms of the plain gradient; `inf` if the step fails or a value is NaN.
        """
        worst = 0.0
        for batch, plain in zip(self.batches, self.gradients, strict=True):
            try:
                optimized = gradient(model, batch)
            except (RuntimeError, TypeError, AttributeError) as error:  # of the dtype, or of the compiler
                logger.info("%s: %s", type(error).__name__, str(error).strip())
                return math.inf
            difference = float((optimized - plain).norm() / plain.norm().clamp_min(1e-12))
            worst = max(worst, difference if difference == difference else math.inf)
        return worst


def mask_variants(batch: Batch, pad: int) -> list[Batch]:
    """Return the batch without an attention mask, and with a mask that masks tokens.

    The mask is the batch's own, or hides the last third of every second text. A text of one token is not
    masked.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    unmasked = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    if ids.shape[1] < 2:
        return [unmasked]
    if mask is None or bool(mask.all()):
        hidden = math.ceil(ids.shape[1] / 3)
        ids, mask = ids.clone(), torch.ones_like(ids)
        ids[::2, -hidden:], mask[::2, -hidden:] = pad, 0
    return [unmasked, {**batch, "input_ids": ids, "attention_mask": mask}]


def gradient(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the gradient of the model's own loss, without dropout, as one float32 vector.

    It covers the trained parameters of at most LARGEST elements. Without dropout the model is in training
    mode, because it is compiled for that mode only.
    """
    trained = [p for p in model.parameters() if p.requires_grad and p.numel() <= LARGEST]
    training = model.training
    model.train(not any(isinstance(module, nn.Dropout) and module.p for module in model.modules()))
    try:
        with torch.random.fork_rng():
            grads = torch.autograd.grad(model(**batch).loss, trained, allow_unused=True)
    finally:
        model.train(training)
    return torch.cat([torch.zeros(1), *(g.float().flatten().cpu() for g in grads if g is not None)])
