"""What the frozen layers below the first trained one make of each text: computed once, kept on disk."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peft_core.modules import encoder_layers

MOST_BYTES = 8_000_000_000  # of one run's file, which is gone when the run ends
DISK_SHARE = 0.5  # of what is free, at most

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Texts:
    """The texts of a run: batches that hold each once, their tokens, a folder for what is kept of them, and
    who hears of how many the frozen layers have run."""

    batches: Iterable[Batch]
    tokens: int
    folder: Path
    told: Callable[[int], None] = lambda texts: None

    def fit(self, bytes_a_token: int) -> bool:
        """Whether so much of every token may lie on the disk."""
        size = self.tokens * bytes_a_token
        return size <= min(MOST_BYTES, DISK_SHARE * shutil.disk_usage(self.folder).free)


def frozen_below(model: nn.Module) -> int:
    """How many layers lie below everything that is trained: 0 where something beneath them is, too.

    0 also where layers share their weights (ALBERT).
    """
    layers = encoder_layers(model)
    if layers is None or len(layers) != model.config.num_hidden_layers:
        return 0
    inside = set(layers.parameters())
    if any(p.requires_grad and p not in inside and "embedding" in n for n, p in model.named_parameters()):
        return 0
    trained = (i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    return next(trained, len(layers))


class _Enough(Exception):
    """The layers above need not run."""


class LowerLayers:
    """A model whose `count` lowest layers run once for each text, and are passed over from then on.

    `fill` runs them, without dropout, for the texts of some batches. After it a batch of such texts takes
    their vectors from a file, and any other batch runs as ever. The file has no name, so that nothing of it
    is left however the process ends.
    """

    def __init__(self, model: nn.Module, count: int, folder: Path) -> None:
        self._model, self._layers = model, list(encoder_layers(model))[:count]
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by `close`)
        self._places: dict[bytes, tuple[int, int]] = {}  # of a text: where its vectors begin, and how many
        self._filling = False
        self._batch: list[bytes] = []
        self._mask: torch.Tensor | None = None
        self._found: torch.Tensor | None = None
        self._kept = torch.empty(0)  # the kind of the vectors
        self._rest: tuple | None = None  # what a layer gives beside them
        self._hooks = [
            model.register_forward_pre_hook(self._look, with_kwargs=True),
            self._layers[-1].register_forward_hook(self._take),
        ]
        self._forwards = [vars(layer).get("forward") for layer in self._layers]
        for layer in self._layers:
            layer.forward = self._passed_over(layer.forward)

    def fill(self, texts: Texts) -> None:
        """Run the model for these texts. OSError if the disk is full."""
        training, self._filling = self._model.training, True
        device = next(self._model.parameters()).device
        self._model.eval()
        try:
            with torch.no_grad():
                for batch in texts.batches:
                    with contextlib.suppress(_Enough):
                        self._model(**{name: value.to(device) for name, value in batch.items()})
                    texts.told(len(self._places))
            self._file.flush()
        finally:
            self._filling = False
            self._model.train(training)

    def close(self) -> None:
        """The model runs whole again, and the file is gone."""
        for hook in self._hooks:
            hook.remove()
        for layer, forward in zip(self._layers, self._forwards, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
        self._file.close()

    def _look(self, _: nn.Module, __: tuple, named: dict[str, Any]) -> None:
        """Before a batch: which texts it holds, and their vectors if all are there."""
        self._batch, self._mask, self._found = [*_keys(named)], named.get("attention_mask"), None
        if not self._filling and self._batch and all(key in self._places for key in self._batch):
            self._found = self._read(named["input_ids"])

    def _take(self, _: nn.Module, __: tuple, output: Any) -> Any:
        """After the last of these layers: its vectors are kept, or those that were kept stand in for them."""
        if self._filling:
            self._rest = output[1:] if isinstance(output, tuple) else None
            self._write(output if self._rest is None else output[0])
            raise _Enough
        return None if self._found is None else self._as_layer(self._found)

    def _passed_over(self, forward: Callable) -> Callable:
        """A layer's `forward` that does nothing for a batch whose vectors are there."""

        def passed(hidden_states: torch.Tensor, *given: Any, **named: Any) -> Any:
            if self._found is None:
                return forward(hidden_states, *given, **named)
            return self._as_layer(hidden_states)

        return passed

    def _as_layer(self, vectors: torch.Tensor) -> Any:
        return vectors if self._rest is None else (vectors, *self._rest)

    def _write(self, vectors: torch.Tensor) -> None:
        """Append those of the batch's texts, (texts, tokens or 1, width), without those of padding."""
        vectors = vectors.cpu()
        mask = None if self._mask is None or vectors.shape[1] == 1 else self._mask.bool().cpu()
        for i, key in enumerate(self._batch):
            one = vectors[i] if mask is None else vectors[i][mask[i]]
            self._places[key] = self._file.tell(), len(one)
            self._file.write(one.contiguous().view(torch.uint8).numpy())
        self._kept = vectors.new_empty(0, vectors.shape[2])

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        """Those of the batch's texts, zero where there is padding."""
        places = [self._places[key] for key in self._batch]
        flat = self._kept.new_empty(sum(length for _, length in places), self._kept.shape[1])
        done = 0
        for start, length in places:
            self._file.seek(start)
            self._file.readinto(flat[done : done + length].view(torch.uint8).numpy())
            done += length
        flat = flat.to(ids.device)
        if self._mask is None or len(flat) == len(ids):  # one vector a text
            return flat.view(len(ids), -1, flat.shape[1])
        padded = flat.new_zeros(*ids.shape, flat.shape[1])
        padded[self._mask.bool()] = flat
        return padded


def _keys(batch: dict[str, Any]) -> Iterator[bytes]:
    """A name for each text, of what decides its vectors: its tokens, and to which of a pair each belongs."""
    told = [batch[name] for name in ("input_ids", "token_type_ids") if batch.get(name) is not None]
    if batch.get("input_ids") is None:
        return
    columns = torch.stack(told, -1).cpu()
    mask = batch.get("attention_mask")
    mask = None if mask is None else mask.bool().cpu()
    for i, one in enumerate(columns):
        one = one if mask is None else one[mask[i]]
        yield hashlib.blake2b(one.numpy().tobytes(), digest_size=16).digest()
