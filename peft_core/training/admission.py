"""Compares a training step with the plain one on a few texts, which decides whether a speed-up is admitted.

Both kinds of batches are compared, because models take other paths for them: one whose texts are all of full
length and come without an attention mask, and one with padding.
"""

import math

import torch
from torch import nn

CHECKED_TEXTS = 4  # more would take more memory than training
LARGEST = 1_000_000  # numbers of a parameter whose gradient is compared; the others say nothing new

Batch = dict[str, torch.Tensor]


class PlainStep:
    """The plain step's gradients on a batch's first texts, or fewer where a GPU is short of memory."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        texts = CHECKED_TEXTS
        while True:
            few = {name: value[:texts] for name, value in batch.items()}
            try:
                self.batches = mask_variants(few, getattr(model.config, "pad_token_id", None) or 0)
                self.gradients = [gradient(model, one) for one in self.batches]
                return
            except torch.OutOfMemoryError:
                if texts == 1:
                    raise
            texts //= 2

    def gradient_error(self, model: nn.Module) -> float:
        """Return the distance of the model's gradient from the plain one, relative to it: the worst batch's.

        `inf` if the step fails or a number is NaN.
        """
        worst = 0.0
        for batch, plain in zip(self.batches, self.gradients, strict=True):
            try:
                other = gradient(model, batch)
            except (RuntimeError, TypeError, AttributeError) as error:  # these numbers, or the compiler
                print(f"{type(error).__name__}: {str(error).strip()}")
                return math.inf
            difference = float((other - plain).norm() / plain.norm().clamp_min(1e-12))
            worst = max(worst, difference if difference == difference else math.inf)
        return worst


def mask_variants(batch: Batch, pad: int) -> list[Batch]:
    """The batch without an attention mask, and with one that masks.

    That is its own, or one of the last third of every second text. A single token is never masked.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    whole = {name: value for name, value in batch.items() if name != "attention_mask"}
    if ids.shape[1] < 2:
        return [whole]
    if mask is None or bool(mask.all()):
        hidden = math.ceil(ids.shape[1] / 3)
        ids, mask = ids.clone(), torch.ones_like(ids)
        ids[::2, -hidden:], mask[::2, -hidden:] = pad, 0
    return [whole, {**batch, "input_ids": ids, "attention_mask": mask}]


def gradient(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the gradient of the model's own loss, without dropout, as one float32 vector.

    It holds every trained parameter of at most LARGEST numbers. Where there is no dropout the model is in
    training mode, for which alone it is compiled then.
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
