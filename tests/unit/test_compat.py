"""Contracts with torch and transformers: the behavior that compat/ relies on."""

import torch
from torch import nn
from transformers import BertConfig, BertModel

from peft_core.compat.torch_internals import (
    fake_tensors,
    softmax_backward,
    storage_id,
    tensor_stores,
    undo_compile,
)
from peft_core.compat.transformers_internals import attention_implementation, set_attention_implementation


def test_fake_tensors_have_shapes_and_no_memory() -> None:
    with fake_tensors():
        product = torch.empty(3, 10**9) @ torch.empty(10**9, 4)  # 28 GB of real tensors
    assert product.shape == (3, 4) and product.device.type == "cpu"


def test_fake_tensors_mix_with_real_ones() -> None:
    real = torch.ones(2, 2)
    with fake_tensors():
        assert (torch.empty(2, 2) + real).shape == (2, 2)


def test_storage_id_is_shared_by_views_only() -> None:
    tensor = torch.zeros(4, 4)
    assert storage_id(tensor) == storage_id(tensor[1:].t())
    assert storage_id(tensor) != storage_id(tensor.clone())
    with fake_tensors():
        first, second = torch.empty(2), torch.empty(2)
        assert storage_id(first) == storage_id(first.view(2, 1)) != storage_id(second)


def test_tensor_stores_hold_parameters_buffers_and_attributes() -> None:
    module = nn.BatchNorm1d(2)
    module.scale = torch.ones(1)
    stores = list(tensor_stores(module))
    names = {name for store in stores for name, value in store.items() if torch.is_tensor(value)}
    assert names == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "scale"}
    stores[0]["weight"] = nn.Parameter(torch.full((2,), 7.0))
    assert module.weight.tolist() == [7.0, 7.0]


def test_softmax_backward_matches_autograd() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = scores.softmax(-1)
    grad = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(weights, scores, grad)
    torch.testing.assert_close(softmax_backward(grad, weights.detach(), torch.float32), expected)


def test_undo_compile_restores_the_uncompiled_call() -> None:
    module, calls = nn.Linear(2, 2), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        calls.append(graph)
        return graph

    module.compile(backend=backend)
    undo_compile(module)
    module(torch.ones(1, 2))
    assert not calls


def test_attention_implementation_is_that_of_the_loaded_model() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=9, **sizes))
    assert attention_implementation(model.config) == "sdpa"
    set_attention_implementation(model.config, "eager")
    ids = torch.ones(1, 3, dtype=torch.long)
    assert model(input_ids=ids, output_attentions=True).attentions[0].shape == (1, 1, 3, 3)
