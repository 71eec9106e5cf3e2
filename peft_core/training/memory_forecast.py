"""Forecast a training's peak memory from the settings and the model's configuration; no weights are read.

The training process holds its libraries, all weights, the gradients and optimizer state of the trained
parameters, and the activations that a step saves for its backward pass. The activations are traced: the
model, in the form in which it will train, runs once on fake tensors, which have a shape and no content. The
numbers of texts and tokens of the traced batch are primes: how often each divides the size of a saved tensor
tells how the tensor grows with a batch.

All weights count, although rows of a frozen embedding that no text uses stay in the memory-mapped file. If
the training rejects bfloat16 because it changes the gradient too much, it takes more memory than forecast:
1.2 and 1.3 times as much in the two trainings where this happened.

Nothing else counts: outputs of frozen layers are on disk (`training.lower_layers`), and a merge runs in
another process after the training. `benchmarks/results/memory_cpu.json` has the measurements behind the
constants.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from peft_core.compat.torch_internals import fake_tensors, storage_id, tensor_stores
from peft_core.config import TrainConfig
from peft_core.hardware import is_bfloat16_faster
from peft_core.methods.adapters import apply_method
from peft_core.methods.registry import bits_of, virtual_tokens
from peft_core.models.encoder import max_input_length, meta_model, model_config, set_dropout
from peft_core.models.modules import config_of, encoder_layers
from peft_core.models.presets import DATASETS
from peft_core.training.gradient_check import CHECKED_TEXTS
from peft_core.training.memory import SHARE, SPARE
from peft_core.training.speedups import UNCOMPILED_CHANGES, Undo

LIBRARIES = 710_000_000  # bytes of a training process without its model and its batches
OVERHEAD = 1.5  # peak of a step over its saved activations, because of temporary tensors
PLAIN_OVER_FAST = 2.3  # activations of the plain step over those of the fast step, which is compared with it
EVAL_BYTES = 40_000  # per unit of the encoder's width: an evaluation batch of about 4,096 tokens
TOKEN_BYTES = 36  # of a Python int in a list: the training rows' tokens are listed to sort them by length
GRADIENT_BYTES, MOMENT_BYTES = 4, 8  # per trained parameter: gradient, AdamW's two moments, in float32
PADDING = 1.3  # longest text of a length-grouped batch over the mean length, roughly
_TEXTS = 23  # of the traced batch; a prime that does not divide a model's sizes
_TOKENS = 61  # of the traced texts at most; a prime for the same reason
_FLOAT32 = 4  # bytes
_NOT_TRACED = (RuntimeError, TypeError, AttributeError, ValueError, NotImplementedError)
# Settings that do not change the activations of one text, so that one trace serves all their values.
_BATCH_SETTINGS = (
    "per_device_train_batch_size", "max_length", "max_train_samples", "max_eval_samples", "num_train_epochs",
    "learning_rate", "seed", "split_seed", "warmup_steps", "weight_decay", "lr_scheduler_type", "eval_steps",
    "gradient_accumulation_steps", "dataset_name", "dataset_config_name", "load_best_model_at_end",
    "early_stopping_patience", "early_stopping_threshold", "max_grad_norm", "remedies",
)  # fmt: skip


@dataclass(frozen=True)
class ModelMemory:
    """The memory of a model in training, independent of the batches.

    Attributes:
        weights: Bytes of all weights in training, with copies in half precision.
        loaded: Bytes of the weights while they are loaded.
        trained: Number of trained parameters.
        activations: Bytes that a step saves for its backward pass, by the powers of texts and tokens with
            which they grow.
        is_fast: Whether the step is optimized, and so compared with the plain one first.
        layers: Number of encoder layers.
        width: Hidden size of the encoder.
    """

    weights: int
    loaded: int
    trained: int
    activations: tuple[tuple[tuple[int, int], int], ...]
    is_fast: bool
    layers: int
    width: int

    def activation_bytes(self, texts: float, tokens: float) -> float:
        """Return the bytes that a step on `texts` texts of `tokens` tokens saves for its backward pass."""
        return sum(size * texts**i * tokens**j for (i, j), size in self.activations)


@dataclass(frozen=True)
class _Trace:
    """The activations of a step by their growth, the dtype of its layers, and whether it is optimized."""

    activations: dict[tuple[int, int], int]
    dtype: str
    is_fast: bool


def forecast_memory(config: TrainConfig, free: int | None = None) -> int:
    """Return about how many bytes the training process takes at its peak on this machine's CPU.

    Args:
        config: The settings. Texts of unknown length count as `max_length` tokens.
        free: Free bytes; a batch that takes more is split into parts (`training.memory.plan_memory`).

    Raises:
        ModelError, HubError: The model's configuration cannot be read.
    """
    model = _model_memory(_relevant(config), _num_labels(config))
    texts, tokens = _batch(config)
    base = LIBRARIES + model.weights + MOMENT_BYTES * model.trained
    activations = _activations_in_parts(model, texts, tokens, None if free is None else free - base)
    step = OVERHEAD * activations + GRADIENT_BYTES * model.trained
    checked_texts = min(texts, CHECKED_TEXTS)
    compared = PLAIN_OVER_FAST * model.activation_bytes(checked_texts, tokens) if model.is_fast else 0
    listed = TOKEN_BYTES * config.max_train_samples * _mean_tokens(config)
    loading = LIBRARIES + max(model.loaded, model.weights) + listed
    return int(max(base + max(step, compared, EVAL_BYTES * model.width), loading))


def _batch(config: TrainConfig) -> tuple[float, float]:
    """Return the texts of a batch and the tokens of each text; all batches have about as many tokens."""
    texts, preset = config.per_device_train_batch_size, DATASETS.get(config.dataset_name)
    tokens = config.max_length if preset is None else min(config.max_length, PADDING * preset.mean_tokens)
    return min(texts, config.max_train_samples), tokens + virtual_tokens(config.to_dict())


def _mean_tokens(config: TrainConfig) -> int:
    preset = DATASETS.get(config.dataset_name)
    return config.max_length if preset is None else min(config.max_length, preset.mean_tokens)


def _activations_in_parts(model: ModelMemory, texts: float, tokens: float, free: float | None) -> float:
    """Return the bytes that a step saves after `plan_memory` has split its batch to fit into free memory.

    If a single text does not fit, the layers are checkpointed: they save only their inputs.
    """

    def fits(texts: float) -> bool:
        return free is None or SPARE * model.activation_bytes(texts, tokens) <= SHARE * free

    while texts > 1 and not fits(texts):
        texts = max(1.0, texts / 2)
    activations = model.activation_bytes(texts, tokens)
    if not fits(texts):
        activations = activations / model.layers + model.layers * tokens * model.width * _FLOAT32
    return activations


def _num_labels(config: TrainConfig) -> int:
    """Return the outputs of the head; two if only the rows can tell, which hardly changes the memory."""
    preset = DATASETS.get(config.dataset_name)
    return config.num_labels or (len(preset.label_names) if preset else 0) or 2


def _relevant(config: TrainConfig) -> TrainConfig:
    """Return the settings with defaults for those that do not change the activations of one text."""
    defaults = {name: getattr(TrainConfig, name) for name in _BATCH_SETTINGS}
    return replace(config, **defaults)


@lru_cache(maxsize=64)
def _model_memory(config: TrainConfig, num_labels: int) -> ModelMemory:
    shape = model_config(config.model_name_or_path, config.revision)
    model = apply_method(meta_model(shape, num_labels), config)
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
        activations=tuple(trace.activations.items()),
        is_fast=trace.is_fast,
        layers=max(1, shape.num_hidden_layers),
        width=shape.hidden_size,
    )


def _trace(model: nn.Module, config: TrainConfig, max_tokens: int) -> _Trace:
    """Trace a step of the model in the form in which it will train.

    Optimizations with which the step fails are undone, as in the training.
    """
    is_bfloat16_faster(torch.device("cpu"))  # measured before tensors are fake
    changes: list[tuple[Undo, Any]] = []
    with _fake_weights(model), torch.random.fork_rng():
        for _, change in UNCOMPILED_CHANGES if config.arithmetic == "fast" else ():
            undo, setting = change(model, config.method)
            if undo is not None:
                changes.append((undo, setting))
        while True:
            dtype = "bfloat16" if "bfloat16" in [setting for _, setting in changes] else "float32"
            try:
                return _Trace(_traced_activations(model, config, max_tokens), dtype, bool(changes))
            except _NOT_TRACED:
                if not changes:
                    return _Trace(_computed_activations(config_of(model)), "float32", is_fast=False)
                changes.pop()[0]()


@contextmanager
def _fake_weights(model: nn.Module) -> Iterator[None]:
    """Give a model on the meta device fake CPU weights, so that the CPU's kernels are traced."""
    copies: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in copies:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
        return copies[id(tensor)]

    def replace_meta(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():  # the keys stay
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                tensors[name] = fake(tensor)

    with fake_tensors():
        for module in model.modules():
            for tensors in tensor_stores(module):
                replace_meta(tensors)
        yield


def _traced_activations(model: nn.Module, config: TrainConfig, max_tokens: int) -> dict[tuple[int, int], int]:
    """Return the bytes that a step saves for its backward pass, by the powers of texts and tokens."""
    own = {storage_id(parameter) for parameter in model.parameters()}
    virtual = virtual_tokens(config.to_dict())
    tokens = _traced_tokens(max_tokens, virtual)
    storages: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if storage_id(tensor) not in own:
            storages[storage_id(tensor)] = tensor
        return tensor

    # in evaluation mode where it makes no difference: LoHa and LoKr draw a random number in training mode
    model.train(bool(config.dropout or config.lora_dropout))
    config_of(model).problem_type = "single_label_classification"
    ids, labels = torch.ones(_TEXTS, tokens, dtype=torch.long), torch.zeros(_TEXTS, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=labels).loss
    activations: dict[tuple[int, int], int] = {}
    for tensor in storages.values():
        growth, size = _growth(tensor.untyped_storage().nbytes(), {tokens, tokens + virtual})
        activations[growth] = activations.get(growth, 0) + size
    del loss  # only now: while it lives, no two saved tensors share an address
    return activations


def _traced_tokens(max_tokens: int, virtual: int) -> int:
    """Return a prime number of tokens whose sum with the virtual tokens is a prime or twice a prime."""
    for tokens in range(min(max_tokens - virtual, _TOKENS), 2, -1):
        total = tokens + virtual
        if _is_prime(tokens) and (_is_prime(total) or (total % 2 == 0 and _is_prime(total // 2))):
            return tokens
    return 2


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _growth(size: int, lengths: set[int]) -> tuple[tuple[int, int], int]:
    """Return the powers of texts and tokens with which a tensor grows, and its bytes per text and token."""
    by_texts, by_tokens = 0, 0
    if size and size % _TEXTS == 0:
        size, by_texts = size // _TEXTS, 1
    for length in sorted(lengths, reverse=True) * 2:
        if size and by_tokens < 2 and size % length == 0:
            size, by_tokens = size // length, by_tokens + 1
    return (by_texts, by_tokens), size


def _computed_activations(config: PreTrainedConfig) -> dict[tuple[int, int], int]:
    """Return the bytes that a step of a model that cannot be traced saves, in float32.

    Source: Korthikanti et al. 2022, arXiv:2205.05198, equation 1: a layer saves 34 bytes per token and unit
    of width, and 5 per attention score, in half precision.
    """
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    return {(1, 1): 2 * 34 * layers * width, (1, 2): 2 * 5 * layers * heads}
