"""LoRA layers and attention as autograd functions that do less work than the plain modules."""

from itertools import repeat
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, scaled_dot_product_attention

from peft_core.compat.torch_internals import softmax_backward

_CACHED_SCORES = 250_000  # attention scores that are computed together, so that they stay in the cache
_LONG = 64  # tokens from which softmax in bfloat16 is as fast as in float32 with two copies


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return x W^T + bias + scaling (x A^T) B^T with a frozen W, (..., in) to (..., out), as one operation.

    The result has W's dtype, or autocast's. `lora_a` (r, in) and `lora_b` (out, r) may be wider, and their
    gradients have their dtype. LoRA: Hu et al. 2021, arXiv:2106.09685, equation 3.
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
    """Return softmax(scaling Q K^T) V; each of Q, K and V is (texts, heads, tokens, width).

    In bfloat16 on a CPU it uses plain matrix products, over as many texts at once as have scores that fit
    into the cache. For few tokens they are several times as fast as PyTorch's flash kernel with its backward
    pass, for some hundreds up to twice as fast. Otherwise PyTorch chooses the kernel.

    Args:
        mask: True where a key counts, or a bias that is added to the scores.
    """
    is_simple = not dropout and (mask is None or mask.dtype == torch.bool)
    if is_simple and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _Attention.apply(query, key, value, mask, scaling)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, dropout_p=dropout)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # FunctionCtx, whose type does not allow attributes of its own
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        rows = x.reshape(-1, x.shape[-1])
        rows, weight, a, b = (tensor.to(dtype) for tensor in (rows, weight, lora_a, lora_b))
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(kind, enabled=False):
            low = rows @ a.t()
            out = linear(rows, weight, bias).addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (x.dtype, lora_a.dtype, lora_b.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # once_differentiable's type makes ctx positional-only
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
        ctx: Any,  # FunctionCtx, whose type does not allow attributes of its own
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        dtype = torch.float32 if key.shape[2] < _LONG else query.dtype
        q, k, v = (query * scaling).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        weights, out = q.new_empty(*q.shape[:2], k.shape[1]), torch.empty_like(q)
        chunk = _chunk_size(weights, len(query))
        bias = repeat(None) if mask is None else _mask_bias(mask, query).split(chunk)
        chunks = zip(*_split(chunk, weights, q, k, v, out), bias, strict=False)
        for weights_, q_, k_, v_, out_, bias_ in chunks:
            scores = torch.bmm(q_, k_.transpose(1, 2))
            if bias_ is not None:
                scores.add_(bias_)
            weights_.copy_(torch.softmax(scores, -1, dtype=dtype))
            torch.bmm(weights_, v_, out=out_)
        ctx.save_for_backward(q, k, v, weights)
        ctx.chunk, ctx.scaling, ctx.heads, ctx.dtype = chunk, scaling, query.shape[1], dtype
        return out.unflatten(0, (-1, ctx.heads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # once_differentiable's type makes ctx positional-only
        q, k, v, weights = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        grads = [torch.empty_like(tensor) for tensor in (q, k, v)]
        chunks = zip(*_split(ctx.chunk, weights, grad, q, k, v, *grads), strict=True)
        for weights_, grad_, q_, k_, v_, grad_q, grad_k, grad_v in chunks:
            torch.bmm(weights_.transpose(1, 2), grad_, out=grad_v)
            scores = torch.bmm(grad_, v_.transpose(1, 2)).to(ctx.dtype)
            weights_ = weights_.to(ctx.dtype)
            scores = softmax_backward(scores, weights_, ctx.dtype).to(q.dtype)
            torch.bmm(scores, k_, out=grad_q)
            torch.bmm(scores.transpose(1, 2), q_, out=grad_k)
        grads[0].mul_(ctx.scaling)
        return *(tensor.unflatten(0, (-1, ctx.heads)) for tensor in grads), None, None


def _chunk_size(weights: torch.Tensor, texts: int) -> int:
    """Return how many rows of (texts * heads, queries, keys) are computed together to stay in the cache."""
    return len(weights) // texts * max(1, _CACHED_SCORES * texts // weights.numel())


def _split(size: int, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return [tensor.split(size) for tensor in tensors]


def _mask_bias(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Return the bias of the scores, (texts * heads, queries or 1, keys): very negative for masked keys."""
    bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    return bias.expand(len(query), query.shape[1], -1, -1).flatten(0, 1)
