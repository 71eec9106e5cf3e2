"""Several models in memory: equal weights are stored once, the least recently used model is evicted first."""

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


def test_shared_weights_further_adapters_add_only_their_own_size(
    finished_run: Run, merged_run: Run, train_here: Callable[..., Run]
) -> None:
    others = [train_here(method=name, num_train_epochs=1, r=2) for name in ("lora", "ia3", "prefix_tuning")]
    predictors = [Predictor(run.folder) for run in (finished_run, *others)]
    before = [predictor.logits(TEXTS) for predictor in predictors]
    single_bytes = tensor_bytes([predictors[0].model])
    shared = SharedWeights()
    for predictor in predictors:
        shared.share("base", predictor.model)
    for predictor, logits in zip(predictors, before, strict=True):
        assert np.array_equal(predictor.logits(TEXTS), logits)
    shared_bytes = tensor_bytes(predictor.model for predictor in predictors)
    adapter_bytes = sum((run.adapter / "adapter_model.safetensors").stat().st_size for run in others)
    head_bytes = 3 * 2 * 33 * 4  # PEFT keeps a frozen copy of each head, random at each load
    buffer_bytes = 3 * sum(buffer.nbytes for buffer in predictors[0].model.buffers())  # position IDs
    assert shared_bytes - single_bytes <= adapter_bytes + head_bytes + buffer_bytes, (
        "more was held than the adapters' own weights"
    )
    assert sum(tensor_bytes([predictor.model]) for predictor in predictors) > 3 * shared_bytes / 2
    merged = Predictor(merged_run.folder, "merged")
    shared.share("base", merged.model)
    embeddings = merged.model.get_input_embeddings().weight
    assert embeddings.data_ptr() == predictors[0].model.get_input_embeddings().weight.data_ptr()


def test_shared_weights_keep_different_weights_apart() -> None:
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    shared = SharedWeights()
    shared.share("base", first)
    shared.share("base", second)
    assert first.weight.data_ptr() != second.weight.data_ptr()
    third = torch.nn.Linear(3, 3)
    third.load_state_dict(second.state_dict())
    shared.share("another base", third)
    assert third.weight.data_ptr() != second.weight.data_ptr()
    shared.share("base", third)
    assert third.weight.data_ptr() == second.weight.data_ptr()


def test_model_cache_over_limit_evicts_least_recently_used() -> None:
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


def test_model_cache_releases_old_version_before_loading_new() -> None:
    cache = ModelCache(max_bytes=1000)
    old = weakref.ref(cache.get("a", 1, lambda: SimpleNamespace(model=torch.nn.Linear(2, 2))).model)

    def load() -> SimpleNamespace:
        assert old() is None, "the old model is still in memory while the new one is loaded"
        return SimpleNamespace(model=torch.nn.Linear(2, 2))

    assert cache.get("a", 2, load) is cache.get("a", 2, load) and len(cache) == 1


def test_predict_releases_models_of_deleted_run(finished_run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(finished_run.folder, tmp_path / "copy")
    tasks.predict(str(copy), "base", TEXTS[0])
    tasks.predict(str(copy), "adapter", TEXTS[0])
    models = [weakref.ref(tasks._predictor(str(copy), variant).model) for variant in ("base", "adapter")]
    shutil.rmtree(copy)
    tasks.predict(str(finished_run.folder), "adapter", TEXTS[0])
    gc.collect()  # a model's modules reference each other
    assert [model() for model in models] == [None, None]


def test_predictors_of_same_base_share_tokenizer(finished_run: Run, train_here: Callable[..., Run]) -> None:
    other = train_here(method="ia3", num_train_epochs=1)
    before = tasks.predict(str(other.folder), "adapter", TEXTS[0])["scores"]
    tokenizers = {id(tasks._predictor(str(run.folder), "adapter").tokenizer) for run in (finished_run, other)}
    assert len(tokenizers) == 1
    assert tasks.predict(str(other.folder), "adapter", TEXTS[0])["scores"] == before


def test_shared_tokenizers_keep_different_tokenizers_apart(finished_run: Run) -> None:
    original, extended, left_padded = (Predictor(finished_run.folder).tokenizer for _ in range(3))
    extended.add_tokens(["pizzeria"])
    left_padded.padding_side = "left"
    shared = SharedTokenizers()
    assert [shared.share(tokenizer) for tokenizer in (original, extended, left_padded)] == [
        original,
        extended,
        left_padded,
    ]


def test_shared_tokenizers_without_backend_stay_separate() -> None:
    """Their vocabulary does not determine their output."""
    lower, cased = (SimpleNamespace(lower=lower, get_vocab=lambda: {"a": 0}) for lower in (True, False))
    shared = SharedTokenizers()
    assert shared.share(lower) is lower and shared.share(cased) is cased


@pytest.mark.parametrize("bytes_left", [0, 1])
def test_model_cache_always_keeps_one_model(bytes_left: int) -> None:
    cache = ModelCache(bytes_left)
    cache.get("a", 1, lambda: SimpleNamespace(model=torch.nn.Linear(10, 10)))
    assert len(cache) == 1
