"""The last encoder layer for the classification token alone, where a head reads no other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from peft_core.training.kernels import attention

# In bfloat16 a processor makes a product ready anew for each number of rows; a few rows more take less time.
ROWS = 64
FirstToken = Callable[..., torch.Tensor]


def first_token_forward(layer: nn.Module) -> FirstToken | None:
    """A `forward` for this layer that returns only the first token's output, (texts, 1, width).

    Key and value read every token; query, output and MLP run for the first alone. None for a layer of another
    build than BERT's (RoBERTa, ELECTRA, XLM-R, CamemBERT and more) or DistilBERT's.
    """
    if _has(layer, "attention.self.query", "attention.output", "feed_forward_chunk"):
        return _of_bert(layer)
    if _has(layer, "attention.q_lin", "attention.out_lin", "sa_layer_norm", "ffn", "output_layer_norm"):
        return _of_distilbert(layer)
    return None


def _of_bert(layer: Any) -> FirstToken:
    def forward(hidden_states: torch.Tensor, attention_mask: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        inner, first = layer.attention.self, _filled_up(hidden_states[:, :1])
        context = _attend(inner, (inner.query, inner.key, inner.value), first, hidden_states, attention_mask)
        return layer.feed_forward_chunk(layer.attention.output(context, first))[: len(hidden_states)]

    return forward


def _of_distilbert(layer: Any) -> FirstToken:
    def forward(hidden_states: torch.Tensor, attention_mask: Any = None, **_: Any) -> torch.Tensor:
        inner, first = layer.attention, _filled_up(hidden_states[:, :1])
        context = _attend(
            inner, (inner.q_lin, inner.k_lin, inner.v_lin), first, hidden_states, attention_mask
        )
        attended = layer.sa_layer_norm(inner.out_lin(context) + first)
        return layer.output_layer_norm(layer.ffn(attended) + attended)[: len(hidden_states)]

    return forward


def _filled_up(rows: torch.Tensor) -> torch.Tensor:
    """The first tokens of a batch, (texts, 1, width), with zeros up to a multiple of ROWS if that helps."""
    missing = -len(rows) % ROWS
    prepared = rows.dtype == torch.bfloat16 and rows.device.type == "cpu"  # by oneDNN
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if prepared and missing else rows


def _attend(
    inner: Any,
    projections: tuple[nn.Module, ...],
    first: torch.Tensor,
    hidden_states: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """The first token's attention over all tokens, before the output projection; filled up as `first` is."""
    given = (first, hidden_states, hidden_states)
    query, key, value = (
        project(one).unflatten(-1, (-1, inner.attention_head_size)).transpose(1, 2)
        for project, one in zip(projections, given, strict=True)
    )
    mask = None if mask is None else mask[:, :, :1]
    dropout = inner.dropout.p if inner.training else 0.0
    query = query[: len(hidden_states)]
    return _filled_up(attention(query, key, value, mask, inner.scaling, dropout).transpose(1, 2).flatten(2))


def _has(layer: nn.Module, *paths: str) -> bool:
    for path in paths:
        found: Any = layer
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is None:
            return False
    return True
