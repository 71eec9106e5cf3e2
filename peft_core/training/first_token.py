"""Run the last encoder layer only for the first token, if the classification head reads no other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from peft_core.training.kernels import attention

# In bfloat16 oneDNN prepares a matrix product anew for each number of rows on a CPU; padding costs less time.
ROWS = 64
FirstToken = Callable[..., torch.Tensor]


def first_token_forward(layer: nn.Module) -> FirstToken | None:
    """Return a `forward` of this layer that computes only the first token's output, (texts, 1, width).

    Key and value read every token; query, output and MLP run for the first token only. Returns None unless
    the layer is BERT-like (BERT, RoBERTa, ELECTRA, XLM-R, CamemBERT and more) or DistilBERT's.
    """
    if _has(layer, "attention.self.query", "attention.output", "feed_forward_chunk"):
        return _of_bert(layer)
    if _has(layer, "attention.q_lin", "attention.out_lin", "sa_layer_norm", "ffn", "output_layer_norm"):
        return _of_distilbert(layer)
    return None


def _of_bert(layer: Any) -> FirstToken:
    def forward(hidden_states: torch.Tensor, attention_mask: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        inner, first = layer.attention.self, _pad_rows(hidden_states[:, :1])
        context = _attend(inner, (inner.query, inner.key, inner.value), first, hidden_states, attention_mask)
        return layer.feed_forward_chunk(layer.attention.output(context, first))[: len(hidden_states)]

    return forward


def _of_distilbert(layer: Any) -> FirstToken:
    def forward(hidden_states: torch.Tensor, attention_mask: Any = None, **_: Any) -> torch.Tensor:
        inner, first = layer.attention, _pad_rows(hidden_states[:, :1])
        context = _attend(
            inner, (inner.q_lin, inner.k_lin, inner.v_lin), first, hidden_states, attention_mask
        )
        attended = layer.sa_layer_norm(inner.out_lin(context) + first)
        return layer.output_layer_norm(layer.ffn(attended) + attended)[: len(hidden_states)]

    return forward


def _pad_rows(rows: torch.Tensor) -> torch.Tensor:
    """Pad the first tokens of a batch, (texts, 1, width), with zeros to a multiple of ROWS if that helps."""
    missing = -len(rows) % ROWS
    uses_onednn = rows.dtype == torch.bfloat16 and rows.device.type == "cpu"
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if uses_onednn and missing else rows


def _attend(
    inner: Any,
    projections: tuple[nn.Module, ...],
    first: torch.Tensor,
    hidden_states: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Return the first token's attention over all tokens, before the output projection; padded as `first`."""
    inputs = (first, hidden_states, hidden_states)
    query, key, value = (
        projection(states).unflatten(-1, (-1, inner.attention_head_size)).transpose(1, 2)
        for projection, states in zip(projections, inputs, strict=True)
    )
    mask = None if mask is None else mask[:, :, :1]
    dropout = inner.dropout.p if inner.training else 0.0
    query = query[: len(hidden_states)]
    return _pad_rows(attention(query, key, value, mask, inner.scaling, dropout).transpose(1, 2).flatten(2))


def _has(layer: nn.Module, *paths: str) -> bool:
    """Whether the layer has an attribute at each dotted path."""
    for path in paths:
        attribute: Any = layer
        for name in path.split("."):
            attribute = getattr(attribute, name, None)
        if attribute is None:
            return False
    return True
