"""Several models in memory: equal weights are held once, and the longest unused model goes first."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from peft_core.inference.predictor import Predictor
from peft_core.inference.sharing import ModelCache, SharedWeights, tensor_bytes
from peft_core.runs import Run

TEXTS = ["The food was awful, really terrible.", "Wonderful, the best pizza, excellent."]


def test_a_second_adapter_costs_its_own_size(
    finished_run: Run, merged_run: Run, train_here: Callable[..., Run]
) -> None:
    others = [train_here(method=name, num_train_epochs=1, r=2) for name in ("lora", "ia3", "prefix_tuning")]
    loaded = [Predictor(run.folder) for run in (finished_run, *others)]
    before = [predictor.logits(TEXTS) for predictor in loaded]
    alone = tensor_bytes([loaded[0].model])
    shared = SharedWeights()
    for predictor in loaded:
        shared.share("base", predictor.model)
    for predictor, logits in zip(loaded, before, strict=True):
        assert np.array_equal(predictor.logits(TEXTS), logits)
    together = tensor_bytes(predictor.model for predictor in loaded)
    own = sum((run.adapter / "adapter_model.safetensors").stat().st_size for run in others)
    heads = 3 * 2 * 33 * 4  # the frozen copy of a head that PEFT keeps is drawn anew at each load
    places = 3 * sum(buffer.nbytes for buffer in loaded[0].model.buffers())  # position numbers, not weights
    assert together - alone <= own + heads + places, "more was held than the adapters' own weights"
    assert sum(tensor_bytes([predictor.model]) for predictor in loaded) > 3 * together / 2
    merged = Predictor(merged_run.folder, "merged")
    shared.share("base", merged.model)
    embeddings = merged.model.get_input_embeddings().weight
    assert embeddings.data_ptr() == loaded[0].model.get_input_embeddings().weight.data_ptr()


def test_weights_that_differ_are_never_shared() -> None:
    one, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    shared = SharedWeights()
    shared.share("base", one)
    shared.share("base", other)
    assert one.weight.data_ptr() != other.weight.data_ptr()
    third = torch.nn.Linear(3, 3)
    third.load_state_dict(other.state_dict())
    shared.share("another base", third)
    assert third.weight.data_ptr() != other.weight.data_ptr()
    shared.share("base", third)
    assert third.weight.data_ptr() == other.weight.data_ptr()


def test_the_longest_unused_model_goes_when_memory_is_short() -> None:
    def load(name: str) -> Callable[[], SimpleNamespace]:
        return lambda: SimpleNamespace(name=name, model=torch.nn.Linear(10, 10, bias=False))

    cache = ModelCache(most_bytes=2 * 400)
    first = cache.get("a", load("a"))
    cache.get("b", load("b"))
    assert cache.get("a", load("new")) is first
    cache.get("c", load("c"))
    assert len(cache) == 2 and cache.held_bytes() == 800
    assert cache.get("a", load("new")) is first
    assert cache.get("b", load("anew")).name == "anew"


@pytest.mark.parametrize("bytes_left", [0, 1])
def test_one_model_is_always_kept(bytes_left: int) -> None:
    cache = ModelCache(bytes_left)
    cache.get("a", lambda: SimpleNamespace(model=torch.nn.Linear(10, 10)))
    assert len(cache) == 1
