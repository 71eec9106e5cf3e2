"""Cache the outputs of the frozen layers below the first trained layer: once per text, in a file on disk."""

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

from peft_core.models.modules import config_of, encoder_layers

MOST_BYTES = 8_000_000_000  # largest size of a run's cache file, which is removed when the run ends
DISK_SHARE = 0.5  # largest share of the free disk space

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TextsToCache:
    """The texts of a run whose frozen outputs are cached.

    Attributes:
        batches: Batches that contain each text once.
        tokens: Number of tokens of all texts.
        folder: Folder of the cache file.
        on_progress: Called with the number of texts that are cached so far.
    """

    batches: Iterable[Batch]
    tokens: int
    folder: Path
    on_progress: Callable[[int], None] = lambda texts: None

    def fit(self, bytes_per_token: int) -> bool:
        """Whether the disk has room for `bytes_per_token` bytes of every token."""
        size = self.tokens * bytes_per_token
        return size <= min(MOST_BYTES, DISK_SHARE * shutil.disk_usage(self.folder).free)


def frozen_below(model: nn.Module) -> int:
    """Return the number of layers below all trained modules.

    It is 0 if the embeddings are trained, or if layers share their weights (ALBERT).
    """
    layers = encoder_layers(model)
    if layers is None or len(layers) != config_of(model).num_hidden_layers:
        return 0
    inside = set(layers.parameters())
    if any(p.requires_grad and p not in inside and "embedding" in n for n, p in model.named_parameters()):
        return 0
    trained = (i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    return next(trained, len(layers))


class _StopForward(Exception):
    """Raised by a hook to end a forward pass whose remaining layers are not needed."""


class FrozenLayerCache:
    """Cache the outputs of a model's `count` lowest layers, which then run once per text.

    `fill` runs the layers, without dropout, and writes their outputs. Afterwards a batch of cached texts
    reads its hidden states from the file, and any other batch runs as usual. The file has no name, so that
    nothing remains however the process ends.
    """

    def __init__(self, model: nn.Module, count: int, folder: Path) -> None:
        self._model, self._layers = model, list(encoder_layers(model) or ())[:count]
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by `close`)
        self._places: dict[bytes, tuple[int, int]] = {}  # by text: offset in the file, number of tokens
        self._filling = False
        self._batch: list[bytes] = []
        self._mask: torch.Tensor | None = None
        self._cached: torch.Tensor | None = None  # hidden states of the current batch
        self._prototype = torch.empty(0)  # has the dtype and width of the hidden states
        self._other_outputs: tuple[Any, ...] | None = None  # of a layer that returns a tuple
        self._hooks = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self._layers[-1].register_forward_hook(self._after_last_layer),
        ]
        self._forwards = [vars(layer).get("forward") for layer in self._layers]
        for layer in self._layers:
            layer.forward = self._skip_if_cached(layer.forward)

    def fill(self, texts: TextsToCache) -> None:
        """Run the layers for these texts and write their outputs. Raises OSError if the disk is full."""
        training, self._filling = self._model.training, True
        device = next(self._model.parameters()).device
        self._model.eval()
        try:
            with torch.no_grad():
                for batch in texts.batches:
                    with contextlib.suppress(_StopForward):
                        self._model(**{name: tensor.to(device) for name, tensor in batch.items()})
                    texts.on_progress(len(self._places))
            self._file.flush()
        finally:
            self._filling = False
            self._model.train(training)

    def close(self) -> None:
        """Restore the model and remove the file."""
        for hook in self._hooks:
            hook.remove()
        for layer, forward in zip(self._layers, self._forwards, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
        self._file.close()

    def _before_forward(self, _: nn.Module, __: tuple, kwargs: dict[str, Any]) -> None:
        """Identify the texts of a batch, and read their hidden states if all are cached."""
        self._batch, self._mask, self._cached = [*_keys(kwargs)], kwargs.get("attention_mask"), None
        if not self._filling and self._batch and all(key in self._places for key in self._batch):
            self._cached = self._read(kwargs["input_ids"])

    def _after_last_layer(self, _: nn.Module, __: tuple, output: Any) -> Any:
        """Write the output of the last of the layers, or replace it by the cached hidden states."""
        if self._filling:
            if isinstance(output, tuple):
                hidden_states, self._other_outputs = output[0], output[1:]
            else:
                hidden_states, self._other_outputs = output, None
            self._write(hidden_states)
            raise _StopForward
        return None if self._cached is None else self._as_output(self._cached)

    def _skip_if_cached(self, forward: Callable) -> Callable:
        """Return a layer's `forward` that does nothing for a cached batch."""

        def skipping_forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._cached is None:
                return forward(hidden_states, *args, **kwargs)
            return self._as_output(hidden_states)

        return skipping_forward

    def _as_output(self, hidden_states: torch.Tensor) -> Any:
        return hidden_states if self._other_outputs is None else (hidden_states, *self._other_outputs)

    def _write(self, hidden_states: torch.Tensor) -> None:
        """Append the batch's hidden states, (texts, tokens or 1, width), without those of padding."""
        hidden_states = hidden_states.cpu()
        mask = None if self._mask is None or hidden_states.shape[1] == 1 else self._mask.bool().cpu()
        for i, key in enumerate(self._batch):
            text = hidden_states[i] if mask is None else hidden_states[i][mask[i]]
            self._places[key] = self._file.tell(), len(text)
            self._file.write(text.contiguous().view(torch.uint8).numpy().data)
        self._prototype = hidden_states.new_empty(0, hidden_states.shape[2])

    def _read(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of the batch's texts, with zeros where there is padding."""
        places = [self._places[key] for key in self._batch]
        flat = self._prototype.new_empty(sum(length for _, length in places), self._prototype.shape[1])
        done = 0
        for start, length in places:
            self._file.seek(start)
            self._file.readinto(flat[done : done + length].view(torch.uint8).numpy().data)
            done += length
        flat = flat.to(ids.device)
        if self._mask is None or len(flat) == len(ids):  # one vector per text
            return flat.view(len(ids), -1, flat.shape[1])
        padded = flat.new_zeros(*ids.shape, flat.shape[1])
        padded[self._mask.bool()] = flat
        return padded


def _keys(batch: dict[str, Any]) -> Iterator[bytes]:
    """Yield a digest of each text's input: its tokens and their token types."""
    inputs = [batch[name] for name in ("input_ids", "token_type_ids") if batch.get(name) is not None]
    if batch.get("input_ids") is None:
        return
    rows = torch.stack(inputs, -1).cpu()
    mask = batch.get("attention_mask")
    mask = None if mask is None else mask.bool().cpu()
    for i, row in enumerate(rows):
        tokens = row if mask is None else row[mask[i]]
        yield hashlib.blake2b(tokens.numpy().tobytes(), digest_size=16).digest()
