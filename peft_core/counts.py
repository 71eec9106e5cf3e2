"""Exact parameter counts from a model's shape alone, on the meta device, and a forecast of the time."""

import json
import math
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from peft_core.adapters import apply_method
from peft_core.config import TrainConfig
from peft_core.data.labelled import expected_num_labels
from peft_core.encoder import check_max_length, max_input_length, model_config, skeleton
from peft_core.heads import head_labels
from peft_core.machine import gains_by_half, product_rate
from peft_core.methods import METHODS, TRAINS_LAYERS, bits_of, virtual_tokens
from peft_core.modules import (
    HEAD_NAMES,
    ModuleChoice,
    all_linear,
    encoder_layers,
    head_modules,
    linear_modules,
)
from peft_core.presets import DATASETS
from peft_core.quantise import check_quantisation

FLOAT32_BYTES = 4
_LOOK_EVERY = 60.0  # seconds
_rates_seen: dict[torch.dtype, tuple[float, float]] = {}  # the best, and when it was last looked at
_OPERATIONS = {"full": 6}  # a token and linear weight, where not four
_EFFICIENCY = {"fast": 0.45, "plain": 0.5}  # share of the matrix rate that a training run reaches


@dataclass(frozen=True)
class ParameterCount:
    """PEFT's own accounting. `trainable` is `adapter` + `head` (full fine-tuning: the encoder too);
    `total` counts `head_copy`, the frozen copy of the head that PEFT keeps; `file_bytes` is what is saved."""

    trainable: int
    total: int
    adapter: int
    head: int
    head_copy: int
    file_bytes: int

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of the total."""
        return 100 * self.trainable / self.total

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON types, `percent` included."""
        return {
            "trainable": self.trainable,
            "total": self.total,
            "percent": self.percent,
            "adapter": self.adapter,
            "head": self.head,
            "head_copy": self.head_copy,
            "file_bytes": self.file_bytes,
        }


def count_parameters(config: TrainConfig) -> ParameterCount:
    """Counts from the configuration alone: no weights are read or fetched.

    Raises ModelError, DataError or HubError where the shape or the number of labels cannot be known.
    """
    shape = model_config(config.model_name_or_path, config.revision)
    check_max_length(shape, config.max_length, virtual_tokens(config.to_dict()))
    check_quantisation(bits_of(config.to_dict()))
    model = skeleton(shape, expected_num_labels(config))
    return count_model(apply_method(model, config))


def forecast_seconds(config: TrainConfig) -> float | None:
    """About how long training takes on this machine's processor; None where the texts' length is unknown.

    A frozen linear weight costs two operations a token forward and two backward; a trained one two more for
    its own gradient. One in a layer below all that is trained costs none backward, and is met once for each
    text where `training.lower_layers` keeps what it makes.
    """
    preset = DATASETS.get(config.dataset_name)
    if preset is None:
        return None
    layers, rest = _linear_weights(config.model_name_or_path, config.revision)
    below = sum(layers[: _frozen_layers(len(layers), config)])
    tokens = config.max_train_samples * min(preset.mean_tokens, config.max_length)
    epochs = config.num_train_epochs
    kept = config.arithmetic == "fast" and epochs > 1 and not config.dropout
    operations = _OPERATIONS.get(config.method, 4) * (sum(layers) + rest - below) * epochs
    operations += 2 * below * (1 if kept else epochs)
    rate = _EFFICIENCY[config.arithmetic] * matrix_rate(_arithmetic_dtype(config))
    return operations * tokens / rate


@lru_cache(maxsize=32)
def _linear_weights(name: str, revision: str | None) -> tuple[tuple[int, ...], int]:
    """The weights of a model's linear modules: of each layer, and outside of them."""
    model = skeleton(model_config(name, revision), num_labels=2)
    layers = tuple(map(_weights, encoder_layers(model) or ()))
    return layers, _weights(model) - sum(layers)


def _weights(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def _frozen_layers(layers: int, config: TrainConfig) -> int:
    """How many layers lie below all that is trained."""
    if config.method == "head_only":
        return layers
    has_top = "top_layers" in METHODS[config.method].settings and config.top_layers
    return layers - config.top_layers if has_top else 0


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of this machine's matrix product, the best seen so far in this process.

    It is looked at once a minute at most: a training may want the processor.
    """
    seen, last = _rates_seen.get(dtype, (0.0, -math.inf))
    if time.monotonic() - last > _LOOK_EVERY:
        rate = product_rate(torch.ones(512, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype))
        seen = max(seen, rate)
        _rates_seen[dtype] = seen, time.monotonic()
    return seen


def _arithmetic_dtype(config: TrainConfig) -> torch.dtype:
    """In which numbers the layers will compute on this machine's processor."""
    wide = config.arithmetic == "plain" or config.method in TRAINS_LAYERS
    return torch.float32 if wide or not gains_by_half(torch.device("cpu")) else torch.bfloat16


def describe_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """What the form tells of an architecture before any weight is read, as JSON types.

    `model_type`; `parameters` of the encoder without a head; `max_length`; `head_labels`, the size of the
    head that the checkpoint brings (None if it brings none), and its `head_names`; `head`, the parts that
    start untrained without one; `modules`, each with name, label, roles, matches, shapes (out, in),
    rank_cost and trap.
    """
    config = model_config(name, revision)
    labels = head_labels(config)
    model = skeleton(config, num_labels=2)
    choices = linear_modules(model)
    choices += [all_linear(model)] if choices else []
    return {
        "model_type": config.model_type,
        "parameters": sum(p.numel() for p in model.base_model.parameters()),
        "max_length": max_input_length(config),
        "head_labels": None if labels is None else len(labels),
        "head_names": list(labels or ()),
        "head": list(head_modules(model)),
        "modules": [_choice_facts(choice) for choice in choices],
    }


def _choice_facts(choice: ModuleChoice) -> dict[str, Any]:
    return {
        **asdict(choice),
        "roles": list(choice.roles),
        "shapes": [list(shape) for shape in choice.shapes],
        "label": choice.label,
    }


def count_model(model: nn.Module) -> ParameterCount:
    """Counts of a model that a method was applied to, with real or meta weights."""
    trainable, total = _totals(model)
    saved = {name: tuple(p.shape) for name, p in _saved_state(model).items()}
    if not isinstance(model, PeftModel):
        head = _head_size(model)
        adapter = 0 if trainable == total else trainable - head
        return ParameterCount(trainable, total, adapter, head, 0, safetensors_size(saved))
    wrapped = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    head = sum(p.numel() for w in wrapped for p in w.modules_to_save.parameters())
    copy = sum(p.numel() for w in wrapped for p in w.original_module.parameters())
    return ParameterCount(trainable, total, trainable - head, head, copy, safetensors_size(saved))


def safetensors_size(shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes of a float32 safetensors file: 8, a JSON header padded to 8, the values.

    Source: the format's own description (length, header, data).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in sorted(shapes.items()):
        end = offset + FLOAT32_BYTES * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + math.ceil(text / 8) * 8 + offset


def _totals(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters; PEFT knows that two weights in 4 bits share a byte."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _saved_state(model: nn.Module) -> dict[str, Any]:
    """What is written to disk: the adapter and what is trained whole, or every trainable parameter."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning and next(model.parameters()).is_meta:
            model.prompt_encoder.to_empty(device="cpu")  # PEFT computes what it saves; only its shape is used
        return get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _head_size(model: nn.Module) -> int:
    return sum(
        p.numel()
        for name, p in model.named_parameters()
        if any(part.endswith(HEAD_NAMES) for part in name.split("."))
    )
