"""A step that does not fit into memory is taken in parts, and comes to the same."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers.models.bert.modeling_bert import BertModel

from peft_core.pictures.pieces import speed
from peft_core.runs import Run
from peft_core.train import failure_sentence
from peft_core.training.trainer import is_out_of_memory, split

FULL = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Training steps of more than `texts` texts run out of memory, as a GPU or a processor says it."""
    held, forward = {"texts": 1000, "failed": 0}, BertModel.forward

    def small(self: Any, input_ids: torch.Tensor, **named: Any) -> Any:
        if torch.is_grad_enabled() and self.training and len(input_ids) > held["texts"]:
            held["failed"] += 1
            raise (torch.OutOfMemoryError("CUDA") if held["failed"] % 2 else RuntimeError(FULL))
        return forward(self, input_ids, **named)

    monkeypatch.setattr(BertModel, "forward", small)
    yield held


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    fits: dict[str, int], train_here: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"max_train_samples": 64, "num_train_epochs": 1}
    whole = train_here(**few)
    capsys.readouterr()
    fits["texts"] = 3
    parted = train_here(**few)
    said = capsys.readouterr().out
    assert parted.result()["batch_parts"] == 8 > whole.result()["batch_parts"] == 1
    assert [f"in {parts} parts" in said for parts in (2, 4, 8, 16)] == [True, True, True, False]
    assert parted.state()["batch_parts"] == 8
    assert "each batch in 8 parts" in speed(parted.state())
    for name in ("steps", "tokens", "accuracy"):
        assert parted.result()[name] == whole.result()[name]
    assert parted.result()["eval_loss"] == pytest.approx(whole.result()["eval_loss"], abs=1e-5)


def test_a_single_text_that_does_not_fit_fails_the_run_in_words(
    fits: dict[str, int], train_here: Callable[..., Run]
) -> None:
    fits["texts"] = 0
    with pytest.raises((torch.OutOfMemoryError, RuntimeError)) as caught:
        train_here(max_train_samples=32)
    assert failure_sentence(caught.value).startswith("The machine ran out of memory")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError(FULL), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("can't allocate memory"), False),
    ],
    ids=["gpu", "processor", "python", "another", "a value"],
)
def test_what_counts_as_memory(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


def test_parts_hold_every_text_once() -> None:
    batch = {"input_ids": torch.arange(14).view(7, 2), "labels": torch.arange(7)}
    for parts in (1, 2, 4, 16):
        found = split(batch, parts)
        assert len(found) == min(parts, 7)
        assert torch.cat([part["labels"] for part in found]).equal(batch["labels"])
        assert torch.cat([part["input_ids"] for part in found]).equal(batch["input_ids"])
