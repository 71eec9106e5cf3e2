"""torch 2.13: traced shapes without memory, the identity of a storage, and the derivative of softmax."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def fake_tensors() -> AbstractContextManager[Any]:
    """Return a context in which tensors have shapes and no memory, also beside real tensors.

    torch.compile traces with them. On the meta device other kernels than those of the CPU are chosen.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def storage_id(tensor: torch.Tensor) -> int:
    """Return what tells the storages of tensors apart; fake tensors have no address to compare."""
    return tensor.untyped_storage()._cdata


def tensor_stores(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the dicts that hold a module's own tensors: parameters, buffers and plain attributes."""
    yield module._parameters
    yield module._buffers
    yield vars(module)


def softmax_backward(grad: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the gradient of the scores, from that of softmax(scores) over the last dimension.

    The operation that autograd itself uses.
    """
    return torch._softmax_backward_data(grad, weights, -1, dtype)  # pyright: ignore[reportPrivateImportUsage]


def undo_compile(module: nn.Module) -> None:
    """Let a module run uncompiled again after `module.compile()`, which has no counterpart."""
    module._compiled_call_impl = None
