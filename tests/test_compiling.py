"""Layers that torch.compile makes faster: the same step, compiled once for all shapes, for steps alone."""

import copy
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from test_speedups import assert_same_step, batch_of, built, step
from torch._dynamo.testing import CompileCounterWithBackend

from peft_core.runs import Run
from peft_core.training import memory
from peft_core.training.speedups import optimize_training
from peft_core.training.trainer import RunTrainer

pytestmark = pytest.mark.filterwarnings(  # warnings that torch's own tracer gives itself
    "ignore:The .grad attribute of a Tensor:UserWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts what is compiled, by the whole compiler but its last part, which writes a machine's code."""
    counter, as_it_is = CompileCounterWithBackend("aot_eager"), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(as_it_is, backend=counter))
    torch.compiler.reset()
    return counter


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_layers_compiled_once_give_the_same_step_in_every_shape(
    family: str, compiled: CompileCounterWithBackend, tmp_path: Path
) -> None:
    model, config = built(tmp_path, family, torch_compile="on")
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


def test_a_compiled_run_compiles_for_its_steps_alone(
    compiled: CompileCounterWithBackend, train_here: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for what a step keeps, which is measured on single texts, nor for the curve."""

    def counted(owner: Any, name: str) -> None:
        as_it_is = getattr(owner, name)

        def asked(*given: Any, **named: Any) -> Any:
            before = compiled.frame_count
            found = as_it_is(*given, **named)
            counts[name].append(compiled.frame_count - before)
            return found

        monkeypatch.setattr(owner, name, asked)

    counts: dict[str, list[int]] = {"saved_bytes": [], "evaluate": []}
    counted(memory, "saved_bytes")
    counted(RunTrainer, "evaluate")
    run = train_here(torch_compile="on", num_train_epochs=2.0)
    assert run.result()["speedups"]["compiled"] and compiled.frame_count
    assert set(map(sum, counts.values())) == {0} and all(counts.values())
