"""Two operations of a training step as autograd functions that do less work than the plain modules."""

from itertools import repeat
from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import linear, scaled_dot_product_attention

_CACHED = 250_000  # scores that are computed together
_LONG = 64  # tokens, from which softmax in bfloat16 is as fast as in float32 with a copy there and back


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """x W^T + bias + scaling (x A^T) B^T of a frozen W: (..., in) to (..., out), in W's dtype or autocast's.

    `lora_a` (r, in) and `lora_b` (out, r) may be wider numbers; their gradients are. LoRA: Hu et al. 2021,
    arXiv:2106.09685, equation 3.
    """
    return _LoraLinear.apply(x, weight, bias, lora_a, lora_b, scaling)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(scaling Q K^T) V for (texts, heads, tokens, width) of each; `mask` is True where K counts.

    In bfloat16 on a processor by plain matrix products, of as many texts at once as a cache holds scores of;
    for few tokens they are several times as fast as PyTorch's flash kernel and its backward pass, for some
    hundreds up to twice. Else by PyTorch's own choice.
    """
    plain = not dropout and (mask is None or mask.dtype == torch.bool)
    if plain and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _Attention.apply(query, key, value, mask, scaling)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, dropout_p=dropout)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        rows, weight, a, b = (one.to(dtype) for one in (x.reshape(-1, x.shape[-1]), weight, lora_a, lora_b))
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(kind, enabled=False):
            low = rows @ a.t()
            out = linear(rows, weight, bias).addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (x.dtype, lora_a.dtype, lora_b.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = (grad @ b).mul_(ctx.scaling)
        grad_b = (grad.t() @ low).to(ctx.dtypes[2]).mul_(ctx.scaling)
        grad_a = (grad_low.t() @ rows).to(ctx.dtypes[1])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape).to(ctx.dtypes[0])
        return grad_x, None, None, grad_a, grad_b, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        dtype = torch.float32 if key.shape[2] < _LONG else query.dtype
        q, k, v = (query * scaling).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        shares, out = q.new_empty(*q.shape[:2], k.shape[1]), torch.empty_like(q)
        few = _together(shares, len(query))
        unseen = repeat(None) if mask is None else _unseen(mask, query).split(few)
        for share, q_, k_, v_, out_, unseen_ in zip(*_split(few, shares, q, k, v, out), unseen, strict=False):
            scores = torch.bmm(q_, k_.transpose(1, 2))
            if unseen_ is not None:
                scores.add_(unseen_)
            share.copy_(torch.softmax(scores, -1, dtype=dtype))
            torch.bmm(share, v_, out=out_)
        ctx.save_for_backward(q, k, v, shares)
        ctx.few, ctx.scaling, ctx.heads, ctx.dtype = few, scaling, query.shape[1], dtype
        return out.unflatten(0, (-1, ctx.heads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        grads = [torch.empty_like(one) for one in (q, k, v)]
        parts = zip(*_split(ctx.few, shares, grad, q, k, v, *grads), strict=True)
        for share, grad_, q_, k_, v_, grad_q, grad_k, grad_v in parts:
            torch.bmm(share.transpose(1, 2), grad_, out=grad_v)
            scores = torch.bmm(grad_, v_.transpose(1, 2)).to(ctx.dtype)
            scores = torch._softmax_backward_data(scores, share.to(ctx.dtype), -1, ctx.dtype).to(q.dtype)
            torch.bmm(scores, k_, out=grad_q)
            torch.bmm(scores.transpose(1, 2), q_, out=grad_k)
        grads[0].mul_(ctx.scaling)
        return *(one.unflatten(0, (-1, ctx.heads)) for one in grads), None, None


def _together(shares: torch.Tensor, texts: int) -> int:
    """How many of the (texts * heads, queries, keys) are computed together, so that they stay in a cache."""
    return len(shares) // texts * max(1, _CACHED * texts // shares.numel())


def _split(few: int, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return [one.split(few) for one in tensors]


def _unseen(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """What is added to scores, (texts * heads, queries or 1, keys): very negative for what is masked."""
    added = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return added.expand(len(query), query.shape[1], -1, -1).flatten(0, 1)
