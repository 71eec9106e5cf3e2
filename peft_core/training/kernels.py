"""Two operations of a training step as autograd functions that do less work than the plain modules."""

from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import linear, scaled_dot_product_attention


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

    In bfloat16 on a processor by plain matrix products, whose backward pass is several times as fast there
    as that of PyTorch's flash kernel; else by PyTorch's own choice.
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
        heads = query.shape[1]
        q, k, v = (one.flatten(0, 1) for one in (query, key, value))
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scaling)
        if mask is not None:
            scores.unflatten(0, (-1, heads)).masked_fill_(~mask, torch.finfo(scores.dtype).min)
        shares = torch.softmax(scores, -1)
        ctx.save_for_backward(q, k, v, shares)
        ctx.scaling, ctx.heads = scaling, heads
        return torch.bmm(shares, v).unflatten(0, (-1, heads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        grad_v = torch.bmm(shares.transpose(1, 2), grad)
        grad_shares = torch.bmm(grad, v.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_shares, shares, -1, shares.dtype).mul_(ctx.scaling)
        grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
        return *(one.unflatten(0, (-1, ctx.heads)) for one in (grad_q, grad_k, grad_v)), None, None
