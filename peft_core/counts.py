"""Exact parameter counts from a configuration, on the meta device, and a forecast of training time."""

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

from peft_core.config import TrainConfig
from peft_core.data.labelled import expected_num_labels
from peft_core.hardware import is_bfloat16_faster, matmul_flops_per_second
from peft_core.methods.adapters import apply_method
from peft_core.methods.registry import METHODS, TRAINS_LAYERS, bits_of, virtual_tokens
from peft_core.models.encoder import check_max_length, max_input_length, meta_model, model_config
from peft_core.models.heads import head_labels
from peft_core.models.modules import (
    HEAD_NAMES,
    ModuleChoice,
    all_linear,
    encoder_layers,
    head_modules,
    linear_modules,
)
from peft_core.models.presets import DATASETS
from peft_core.models.quantization import check_quantization

FLOAT32_BYTES = 4
_RATE_INTERVAL = 60.0  # seconds between two measurements of the matrix rate
_best_rates: dict[torch.dtype, tuple[float, float]] = {}  # the best rate, and when one was last measured
_OPERATIONS = {"full": 6}  # per token and linear weight; 4 for every other method
_EFFICIENCY = {"fast": 0.45, "plain": 0.5}  # share of the matrix rate that a training run reaches


@dataclass(frozen=True)
class ParameterCount:
    """Parameter counts as PEFT reports them.

    Attributes:
        trainable: `adapter` + `head`; with full fine-tuning also the encoder.
        total: All parameters, `head_copy` included.
        head_copy: The frozen copy of the head that PEFT keeps.
        file_bytes: Size of the saved file.
    """

    trainable: int
    total: int
    adapter: int
    head: int
    head_copy: int
    file_bytes: int

    @property
    def percent(self) -> float:
        """Trainable parameters as a percentage of the total."""
        return 100 * self.trainable / self.total

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON types, with `percent`."""
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
    """Count parameters from the configuration alone; no weights are read or downloaded.

    Raises:
        ModelError, DataError, HubError: The shape or the number of labels cannot be determined.
    """
    shape = model_config(config.model_name_or_path, config.revision)
    check_max_length(shape, config.max_length, virtual_tokens(config.to_dict()))
    check_quantization(bits_of(config.to_dict()))
    model = meta_model(shape, expected_num_labels(config))
    return count_model(apply_method(model, config))


def forecast_seconds(config: TrainConfig) -> float | None:
    """Return about how many seconds training takes on this CPU; None if the length of the texts is unknown.

    A frozen linear weight costs two operations per token in the forward pass and two in the backward pass; a
    trained weight costs two more for its gradient. A weight in a layer below all trained layers costs none in
    the backward pass, and is used once per text if `training.lower_layers` caches the outputs.
    """
    preset = DATASETS.get(config.dataset_name)
    if preset is None:
        return None
    layers, rest = _linear_weights(config.model_name_or_path, config.revision)
    below = sum(layers[: _frozen_layers(len(layers), config)])
    tokens = config.max_train_samples * min(preset.mean_tokens, config.max_length)
    epochs = config.num_train_epochs
    is_cached = config.arithmetic == "fast" and epochs > 1 and not config.dropout
    operations = _OPERATIONS.get(config.method, 4) * (sum(layers) + rest - below) * epochs
    operations += 2 * below * (1 if is_cached else epochs)
    rate = _EFFICIENCY[config.arithmetic] * matrix_rate(_arithmetic_dtype(config))
    return operations * tokens / rate


@lru_cache(maxsize=32)
def _linear_weights(name: str, revision: str | None) -> tuple[tuple[int, ...], int]:
    """Return the number of linear weights in each layer, and outside the layers."""
    model = meta_model(model_config(name, revision), num_labels=2)
    layers = tuple(map(_weights, encoder_layers(model) or ()))
    return layers, _weights(model) - sum(layers)


def _weights(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def _frozen_layers(layers: int, config: TrainConfig) -> int:
    """Return how many layers are below all trained layers."""
    if config.method == "head_only":
        return layers
    has_top = "top_layers" in METHODS[config.method].settings and config.top_layers
    return layers - config.top_layers if has_top else 0


def matrix_rate(dtype: torch.dtype) -> float:
    """Return this machine's matrix rate in operations per second: the best measured in this process.

    It is measured at most once a minute, because a training may need the processor.
    """
    best, last = _best_rates.get(dtype, (0.0, -math.inf))
    if time.monotonic() - last > _RATE_INTERVAL:
        rate = matmul_flops_per_second(torch.ones(512, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype))
        best = max(best, rate)
        _best_rates[dtype] = best, time.monotonic()
    return best


def _arithmetic_dtype(config: TrainConfig) -> torch.dtype:
    """Return the dtype in which the layers will compute on this CPU."""
    is_float32 = config.arithmetic == "plain" or config.method in TRAINS_LAYERS
    return torch.float32 if is_float32 or not is_bfloat16_faster(torch.device("cpu")) else torch.bfloat16


def describe_model(name: str, revision: str | None = None) -> dict[str, Any]:
    """Return what the form shows of an architecture before any weight is read, as JSON types.

    Returns:
        `model_type`; `parameters` of the encoder without a head; `max_length`; `head_labels`, the size of the
        checkpoint's head (None without one), and its `head_names`; `head`, the modules that start untrained
        without one; `modules`, each with name, label, roles, matches, shapes (out, in), rank_cost and trap.
    """
    config = model_config(name, revision)
    labels = head_labels(config)
    model = meta_model(config, num_labels=2)
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
    """Count the parameters of a model that a method was applied to, with real or meta weights."""
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
    """Return the bytes of a float32 safetensors file: 8, a JSON header padded to 8, the tensors.

    Source: the specification of the format (length, header, data).
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
    """Return the trainable and all parameters; PEFT counts two 4-bit weights in each byte."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _saved_state(model: nn.Module) -> dict[str, Any]:
    """Return the saved tensors: the adapter and fully trained modules, or all trainable parameters."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning and next(model.parameters()).is_meta:
            # PEFT computes the vectors that it saves; only their shape is used
            model.prompt_encoder.to_empty(device="cpu")
        return get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _head_size(model: nn.Module) -> int:
    return sum(
        p.numel()
        for name, p in model.named_parameters()
        if any(part.endswith(HEAD_NAMES) for part in name.split("."))
    )
