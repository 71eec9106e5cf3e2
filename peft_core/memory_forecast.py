"""A forecast of a training's peak memory from settings and the model's configuration: no weights are read.

The training process holds its libraries, the weights, gradients and optimizer state of what is trained, and
what a step keeps for its backward pass. The last is traced: the model, in the form in which it will train,
runs once on fake tensors, which have a shape and no content. Texts and tokens of the traced batch are prime
numbers: how often each divides a kept tensor's size tells how the tensor grows with a batch.

All weights count, though rows of a frozen embedding that no text reads stay in the file that was loaded.
Where the training does not admit bfloat16, since it moves a gradient too far, it takes more than is forecast:
1.2 and 1.3 times as much in the two trainings where that was met.

Nothing else counts: vectors of frozen layers lie on the disk (`training.lower_layers`), and a merge runs in
another process after the training. `tests/memory_cpu.json` holds what the constants are taken from.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peft_core.adapters import apply_method
from peft_core.config import TrainConfig
from peft_core.encoder import max_input_length, model_config, set_dropout, skeleton
from peft_core.machine import gains_by_half
from peft_core.methods import bits_of, virtual_tokens
from peft_core.modules import encoder_layers
from peft_core.presets import DATASETS
from peft_core.training.admission import CHECKED_TEXTS
from peft_core.training.memory import SHARE, SPARE
from peft_core.training.speedups import UNCOMPILED_CHANGES, Undo

LIBRARIES = 710_000_000  # bytes of a training process beside its model and its batches
OVERHEAD = 1.5  # times what a step keeps, at its peak: what else it holds for a moment
PLAIN_OVER_FAST = 2.3  # times as much as a fast step keeps, which the step that it is compared with keeps
EVAL_BYTES = 40_000  # for each unit of width of the encoder: an evaluation's batch of some 4,096 tokens
TOKEN_BYTES = 36  # of a Python number in a list: the training rows' tokens are listed to sort them by length
GRADIENT_BYTES, MOMENT_BYTES = 4, 8  # of a trained number: its gradient, and AdamW's two moments, in float32
PADDING = 1.3  # times the mean length: about how long a batch's longest text is among its neighbors
_TEXTS = 23  # of the traced batch; a prime that is no factor of a model's sizes
_TOKENS = 61  # of the traced texts at most; a prime for the same reason
_FLOAT32 = 4  # bytes
_NOT_TRACED = (RuntimeError, TypeError, AttributeError, ValueError, NotImplementedError)
# Settings that change nothing of what one text keeps, so that a trace serves all their values.
_BATCH_SETTINGS = (
    "per_device_train_batch_size", "max_length", "max_train_samples", "max_eval_samples", "num_train_epochs",
    "learning_rate", "seed", "split_seed", "warmup_steps", "weight_decay", "lr_scheduler_type", "eval_steps",
    "gradient_accumulation_steps", "dataset_name", "dataset_config_name", "load_best_model_at_end",
    "early_stopping_patience", "early_stopping_threshold", "max_grad_norm", "remedies",
)  # fmt: skip


@dataclass(frozen=True)
class ModelMemory:
    """What a model takes in training, whatever the batches.

    Attributes:
        weights: Bytes of all weights as they are trained, copies in half precision included.
        loaded: Bytes of weights while they are loaded.
        trained: Numbers that are trained.
        kept: Bytes that a step keeps for its backward pass, by the powers of texts and tokens that they
            grow with.
        is_fast: Whether the step is another than the plain one, with which it is compared first.
        layers: Layers of the encoder.
        width: Of the encoder.
    """

    weights: int
    loaded: int
    trained: int
    kept: tuple[tuple[tuple[int, int], int], ...]
    is_fast: bool
    layers: int
    width: int

    def kept_bytes(self, texts: float, tokens: float) -> float:
        """Of a batch of so many texts, each of so many tokens, what a step keeps for its backward pass."""
        return sum(size * texts**i * tokens**j for (i, j), size in self.kept)


@dataclass(frozen=True)
class _Trace:
    """What a step keeps by its growth, its layers' dtype, and whether it is another than the plain step."""

    kept: dict[tuple[int, int], int]
    dtype: str
    is_fast: bool


def forecast_memory(config: TrainConfig, free: int | None = None) -> int:
    """About how many bytes the training process takes at its peak, on this machine's processor.

    Args:
        config: The settings. Of texts whose length is unknown all are taken to be `max_length` long.
        free: Bytes that are free; a batch that takes more is read in parts (`training.memory.plan_memory`).

    Raises ModelError or HubError where the model's configuration cannot be read.
    """
    model = _model_memory(_relevant(config), _num_labels(config))
    texts, tokens = _batch(config)
    base = LIBRARIES + model.weights + MOMENT_BYTES * model.trained
    kept = _kept_in_parts(model, texts, tokens, None if free is None else free - base)
    step = OVERHEAD * kept + GRADIENT_BYTES * model.trained
    compared = PLAIN_OVER_FAST * model.kept_bytes(min(texts, CHECKED_TEXTS), tokens) if model.is_fast else 0
    listed = TOKEN_BYTES * config.max_train_samples * _mean_tokens(config)
    loading = LIBRARIES + max(model.loaded, model.weights) + listed
    return int(max(base + max(step, compared, EVAL_BYTES * model.width), loading))


def _batch(config: TrainConfig) -> tuple[float, float]:
    """Texts of a batch, and tokens of each: all batches hold about as many tokens."""
    texts, preset = config.per_device_train_batch_size, DATASETS.get(config.dataset_name)
    tokens = config.max_length if preset is None else min(config.max_length, PADDING * preset.mean_tokens)
    return min(texts, config.max_train_samples), tokens + virtual_tokens(config.to_dict())


def _mean_tokens(config: TrainConfig) -> int:
    preset = DATASETS.get(config.dataset_name)
    return config.max_length if preset is None else min(config.max_length, preset.mean_tokens)


def _kept_in_parts(model: ModelMemory, texts: float, tokens: float, free: float | None) -> float:
    """What a step keeps after `plan_memory` has split its batch to fit what is free.

    Where even one text is too much its layers run again in the backward pass, and keep their inputs alone.
    """

    def fits(texts: float) -> bool:
        return free is None or SPARE * model.kept_bytes(texts, tokens) <= SHARE * free

    while texts > 1 and not fits(texts):
        texts = max(1.0, texts / 2)
    kept = model.kept_bytes(texts, tokens)
    if not fits(texts):
        kept = kept / model.layers + model.layers * tokens * model.width * _FLOAT32
    return kept


def _num_labels(config: TrainConfig) -> int:
    """Outputs of the head; two where only the rows can tell, which hardly changes the memory."""
    preset = DATASETS.get(config.dataset_name)
    return config.num_labels or (len(preset.label_names) if preset else 0) or 2


def _relevant(config: TrainConfig) -> TrainConfig:
    """The settings with those set to their defaults that do not change what one text keeps."""
    defaults = {name: getattr(TrainConfig, name) for name in _BATCH_SETTINGS}
    return replace(config, **defaults)


@lru_cache(maxsize=64)
def _model_memory(config: TrainConfig, num_labels: int) -> ModelMemory:
    shape = model_config(config.model_name_or_path, config.revision)
    model = apply_method(skeleton(shape, num_labels), config)
    set_dropout(model, config.dropout)
    layers = encoder_layers(model) or ()
    inside = sum(p.numel() for layer in layers for p in layer.parameters() if not p.requires_grad)
    numbers = {id(p): p for p in model.parameters()}.values()
    loaded, bits = _FLOAT32 * sum(p.numel() for p in numbers), bits_of(config.to_dict())
    trained = sum(p.numel() for p in numbers if p.requires_grad)
    trace = _trace(model, config, max_input_length(shape))
    weights = loaded - inside * (32 - bits) // 8 + (2 * inside if trace.dtype == "bfloat16" else 0)
    return ModelMemory(
        weights=weights,
        loaded=loaded + inside * bits // 8 * (bits < 32),
        trained=trained,
        kept=tuple(trace.kept.items()),
        is_fast=trace.is_fast,
        layers=max(1, shape.num_hidden_layers),
        width=shape.hidden_size,
    )


def _trace(model: nn.Module, config: TrainConfig, most_tokens: int) -> _Trace:
    """What a step of the model keeps, in the form in which it will train.

    Changes with which the step fails are taken back, as the training does.
    """
    gains_by_half(torch.device("cpu"))  # measured before there are fake tensors only
    changes: list[tuple[Undo, Any]] = []
    with _fake_weights(model), torch.random.fork_rng():
        for _, change in UNCOMPILED_CHANGES if config.arithmetic == "fast" else ():
            undo, value = change(model, config.method)
            if undo is not None:
                changes.append((undo, value))
        while True:
            dtype = "bfloat16" if "bfloat16" in [value for _, value in changes] else "float32"
            try:
                return _Trace(_kept_by_growth(model, config, most_tokens), dtype, bool(changes))
            except _NOT_TRACED:
                if not changes:
                    return _Trace(_kept_by_formula(model.config), "float32", is_fast=False)
                changes.pop()[0]()


@contextmanager
def _fake_weights(model: nn.Module) -> Iterator[None]:
    """A model from the meta device with weights that seem to be the processor's, whose kernels run then."""
    copies: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in copies:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return copies[id(tensor)]

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for tensors in (module._parameters, module._buffers, vars(module)):
                meta = {k: v for k, v in tensors.items() if isinstance(v, torch.Tensor) and v.is_meta}
                tensors.update({name: fake(tensor) for name, tensor in meta.items()})
        yield


def _kept_by_growth(model: nn.Module, config: TrainConfig, most_tokens: int) -> dict[tuple[int, int], int]:
    """Bytes that a step keeps for its backward pass, by the powers of texts and tokens they grow with."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    virtual = virtual_tokens(config.to_dict())
    tokens = _traced_tokens(most_tokens, virtual)
    storages: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            storages[tensor.untyped_storage()._cdata] = tensor
        return tensor

    model.train(bool(config.dropout or config.lora_dropout))  # LoHa and LoKr draw a number in training mode
    model.config.problem_type = "single_label_classification"
    ids, labels = torch.ones(_TEXTS, tokens, dtype=torch.long), torch.zeros(_TEXTS, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=labels).loss
    kept: dict[tuple[int, int], int] = {}
    for tensor in storages.values():
        growth, size = _growth(tensor.untyped_storage().nbytes(), {tokens, tokens + virtual})
        kept[growth] = kept.get(growth, 0) + size
    del loss  # only now: while it lives no two of what is kept share an address
    return kept


def _traced_tokens(most_tokens: int, virtual: int) -> int:
    """A prime number of tokens whose sum with the virtual ones is a prime, too, or twice one."""
    for tokens in range(min(most_tokens - virtual, _TOKENS), 2, -1):
        whole = tokens + virtual
        if _is_prime(tokens) and (_is_prime(whole) or (whole % 2 == 0 and _is_prime(whole // 2))):
            return tokens
    return 2


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _growth(size: int, lengths: set[int]) -> tuple[tuple[int, int], int]:
    """The powers of texts and tokens that a tensor of this size grows with, and its bytes for one of each."""
    by_texts, by_tokens = 0, 0
    if size and size % _TEXTS == 0:
        size, by_texts = size // _TEXTS, 1
    for length in sorted(lengths, reverse=True) * 2:
        if size and by_tokens < 2 and size % length == 0:
            size, by_tokens = size // length, by_tokens + 1
    return (by_texts, by_tokens), size


def _kept_by_formula(shape: Any) -> dict[tuple[int, int], int]:
    """What a step of a model that cannot be traced keeps, in float32.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, equation 1: a layer keeps 34 bytes for each token and
    unit of width, and 5 for each score of attention, in half precision.
    """
    layers, width, heads = shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads
    return {(1, 1): 2 * 34 * layers * width, (1, 2): 2 * 5 * layers * heads}
