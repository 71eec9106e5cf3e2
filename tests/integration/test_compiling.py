"""Tests of layers with torch.compile: same step, compiled once for all shapes, only for training steps."""

import copy
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from test_speedups import assert_same_step, batch_of, build_model, step
from torch._dynamo.testing import CompileCounterWithBackend

from peft_core.runs import Run
from peft_core.training import memory
from peft_core.training.speedups import optimize_training
from peft_core.training.trainer import RunTrainer

pytestmark = pytest.mark.filterwarnings(  # warnings that torch's own tracer triggers
    "ignore:The .grad attribute of a Tensor:UserWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """A counter of compiled graphs; runs the whole compiler except its last part, code generation."""
    counter, original = CompileCounterWithBackend("aot_eager"), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(original, backend=counter))
    torch.compiler.reset()
    return counter


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_layers_compiled_once_give_the_same_step_in_every_shape(
    family: str, compiled: CompileCounterWithBackend, tmp_path: Path
) -> None:
    model, config = build_model(tmp_path, family, torch_compile="on")
    plain = copy.deepcopy(model)
    batches = [batch_of(model, texts, tokens) for texts, tokens in ((6, 9), (3, 17), (8, 5), (5, 30))]
    with optimize_training(model, config, batches[0], steps=1) as applied:
        assert applied.record.compiled
        before = compiled.frame_count
        for batch in batches:
            assert_same_step(step(model, batch), step(plain, batch))
        assert 0 < before == compiled.frame_count
    assert_same_step(step(model, batches[0]), step(plain, batches[0]), bound=0)
    assert compiled.frame_count == before


def test_compiled_run_compiles_only_for_its_steps(
    compiled: CompileCounterWithBackend, train_here: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled for the memory measurement, which runs on single texts, or for evaluations."""

    def count_compilations_of(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            before = compiled.frame_count
            output = original(*args, **kwargs)
            counts[name].append(compiled.frame_count - before)
            return output

        monkeypatch.setattr(owner, name, counting)

    counts: dict[str, list[int]] = {"saved_bytes": [], "evaluate": []}
    count_compilations_of(memory, "saved_bytes")
    count_compilations_of(RunTrainer, "evaluate")
    run = train_here(torch_compile="on", num_train_epochs=2.0)
    assert run.result()["speedups"]["compiled"] and compiled.frame_count
    assert set(map(sum, counts.values())) == {0} and all(counts.values())
