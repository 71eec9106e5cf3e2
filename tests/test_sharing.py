"""Several models in memory: equal weights are held once, and the longest unused model goes first."""

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from peft_core.inference.predictor import Predictor
from peft_core.inference.sharing import ModelCache, SharedTokenizers, SharedWeights, tensor_bytes
from peft_core.runs import Run
from peft_core.service import tasks

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

    cache = ModelCache(max_bytes=2 * 400)
    first = cache.get("a", 1, load("a"))
    cache.get("b", 1, load("b"))
    assert cache.get("a", 1, load("new")) is first
    cache.get("c", 1, load("c"))
    assert len(cache) == 2 and cache.memory_bytes() == 800
    assert cache.get("a", 1, load("new")) is first
    assert cache.get("b", 1, load("anew")).name == "anew"


def test_a_model_whose_files_were_written_anew_takes_the_place_of_the_old() -> None:
    cache = ModelCache(max_bytes=1000)
    old = weakref.ref(cache.get("a", 1, lambda: SimpleNamespace(model=torch.nn.Linear(2, 2))).model)

    def load() -> SimpleNamespace:
        assert old() is None, "the old model is still in memory while the new one is loaded"
        return SimpleNamespace(model=torch.nn.Linear(2, 2))

    assert cache.get("a", 2, load) is cache.get("a", 2, load) and len(cache) == 1


def test_the_models_of_a_deleted_run_are_let_go(finished_run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run.folder, tmp_path / "copy")
    tasks.predict(str(copy), "base", TEXTS[0])
    tasks.predict(str(copy), "adapter", TEXTS[0])
    models = [weakref.ref(tasks._predictor(str(copy), variant).model) for variant in ("base", "adapter")]
    shutil.rmtree(copy)
    tasks.predict(str(finished_run.folder), "adapter", TEXTS[0])
    gc.collect()  # a model's modules point at each other
    assert [model() for model in models] == [None, None]


def test_runs_of_one_base_use_one_tokenizer(finished_run: Run, train_here: Callable[..., Run]) -> None:
    other = train_here(method="ia3", num_train_epochs=1)
    before = tasks.predict(str(other.folder), "adapter", TEXTS[0])["scores"]
    tokenizers = {id(tasks._predictor(str(run.folder), "adapter").tokenizer) for run in (finished_run, other)}
    assert len(tokenizers) == 1
    assert tasks.predict(str(other.folder), "adapter", TEXTS[0])["scores"] == before


def test_tokenizers_that_differ_are_never_shared(finished_run: Run) -> None:
    one, more, left = (Predictor(finished_run.folder).tokenizer for _ in range(3))
    more.add_tokens(["pizzeria"])
    left.padding_side = "left"
    shared = SharedTokenizers()
    assert [shared.share(tokenizer) for tokenizer in (one, more, left)] == [one, more, left]


def test_tokenizers_without_a_backend_are_never_shared() -> None:
    """Their vocabulary does not decide what they answer."""
    lower, cased = (SimpleNamespace(lower=lower, get_vocab=lambda: {"a": 0}) for lower in (True, False))
    shared = SharedTokenizers()
    assert shared.share(lower) is lower and shared.share(cased) is cased


@pytest.mark.parametrize("bytes_left", [0, 1])
def test_one_model_is_always_kept(bytes_left: int) -> None:
    cache = ModelCache(bytes_left)
    cache.get("a", 1, lambda: SimpleNamespace(model=torch.nn.Linear(10, 10)))
    assert len(cache) == 1
