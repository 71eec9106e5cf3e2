"""Optimize a model's training step, and check that its gradient stays the same."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import peft
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from peft_core.compat.torch_internals import undo_compile
from peft_core.compat.transformers_internals import (
    attention_implementation,
    set_attention_implementation,
)
from peft_core.config import TrainConfig
from peft_core.hardware import is_bfloat16_faster, measure_seconds
from peft_core.methods.registry import METHODS, TRAINS_LAYERS
from peft_core.models.modules import config_of, encoder_layers
from peft_core.training.fallback import AppliedOptimizations, TrainingOptimizations
from peft_core.training.first_token import first_token_forward
from peft_core.training.gradient_check import PlainStep, gradient
from peft_core.training.kernels import attention, lora_linear
from peft_core.training.lower_layers import FrozenLayerCache, TextsToCache, frozen_below

WORTH_IT = 1_000_000  # frozen weights in the layers from which bfloat16 is tried
EXACT, HALF = 1e-4, 0.1  # largest change of a step's gradient, in norms of the plain gradient
COMPILING_TAKES, COMPILED_SAVES = 150.0, 0.3  # seconds, and the share of a step; on a GPU
_ATTENTION = "peft_core"
logger = logging.getLogger(__name__)

Undo = Callable[[], None]
Change = Callable[[nn.Module, str], tuple[Undo | None, Any]]


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Run compiled layers eagerly in this block: a few batches are not worth another compilation."""
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def optimize_training(
    model: nn.Module,
    config: TrainConfig,
    batch: dict[str, torch.Tensor],
    steps: int,
    before: TrainingOptimizations | None = None,
    texts: TextsToCache | None = None,
) -> Iterator[AppliedOptimizations]:
    """Apply every optimization that preserves a step's gradient; undo all at the end of the block.

    The gradients are compared on texts of `batch`, with and without an attention mask. An optimization that
    changes the gradient by more than its limit is undone.

    * The last layer runs for the first token only, and plain LoRA layers run as one operation each: both
      change a gradient by rounding only (EXACT).
    * If the machine multiplies bfloat16 faster, the layers' frozen weights are bfloat16; trained parameters
      stay float32 (HALF).
    * Frozen layers below all trained layers run once for each of the `texts`, if these are read repeatedly.
    * On a GPU, the layers are compiled if that pays within `steps` steps.

    Args:
        model: The model with the method applied.
        config: The settings; `arithmetic` "plain" turns all optimizations off.
        batch: The batch on which the gradients are compared.
        steps: Number of forward passes of the training.
        before: Of a run that continues: the only optimizations that are allowed.
        texts: The texts for which outputs of frozen layers may be cached.
    """
    with contextlib.ExitStack() as stack:
        record = TrainingOptimizations()
        if config.arithmetic == "fast":
            compiles = config.torch_compile == "on" or (
                config.torch_compile == "auto" and _compiling_pays(model, batch, steps)
            )
            changes = list(UNCOMPILED_CHANGES)
            if texts is not None and config.num_train_epochs > 1 and not config.dropout:
                changes.append(("lower_layers", partial(_lower_layers, texts)))
            if compiles:
                changes.append(("compiled", _compiled))
            record = _apply_admitted(stack, model, config.method, batch, changes, before)
        yield AppliedOptimizations(model, record, stack)


def _apply_admitted(
    stack: contextlib.ExitStack,
    model: nn.Module,
    method: str,
    batch: dict[str, torch.Tensor],
    changes: list[tuple[str, Change]],
    before: TrainingOptimizations | None,
) -> TrainingOptimizations:
    """Apply the changes that preserve the gradient, register their undoing, and return the record."""
    if before is not None and before.failed:
        return before
    plain, record = PlainStep(model, batch), TrainingOptimizations()
    for name, change in changes:
        if before is not None and getattr(before, name) == getattr(record, name):
            continue
        undo, setting = change(model, method)
        if undo is None:
            continue
        error = plain.gradient_error(model)
        rounds = name in ("dtype", "compiled") or record.dtype != "float32"
        if error <= (HALF if rounds else EXACT):
            stack.callback(undo)
            record = replace(record, gradient_error=error, **{name: setting})
        else:
            reason = f"it would change the gradient by {error:.1e}" if error < math.inf else "it fails"
            logger.info("The optimization %s is not applied: %s", name, reason)
            undo()
    return replace(record, autocast=record.dtype == "float32" and next(model.parameters()).is_cuda)


def _first_token(model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    layers = encoder_layers(model)
    if not layers or method == "prefix_tuning":  # which gives each layer keys and values of its own
        return None, None
    forward = first_token_forward(layers[-1])
    if forward is None:
        return None, None
    return _replace_forwards([(layers[-1], forward)]), True


def _lora_layers(model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    plain = [m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear) and _is_plain(m)]
    if not plain:
        return None, None
    return _replace_forwards([(layer, _fused_forward(layer)) for layer in plain]), len(plain)


def _half(model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    """Convert the layers' frozen weights and the hidden states between the layers to bfloat16."""
    layers = encoder_layers(model)
    if layers is None or method in TRAINS_LAYERS or getattr(model, "is_quantized", False):
        return None, None
    prefix = getattr(model.base_model, "prefix", None)  # in the names of a method's own parameters
    frozen = [
        parameter
        for name, parameter in layers.named_parameters()
        if not parameter.requires_grad and not (prefix and prefix in name)
    ]
    device = next(model.parameters()).device
    if sum(p.numel() for p in frozen) < WORTH_IT or not is_bfloat16_faster(device):
        return None, None
    originals = [parameter.data for parameter in frozen]  # memory-mapped from the file that was loaded
    for parameter in frozen:
        parameter.data = parameter.data.to(torch.bfloat16)
    hooks = _narrow_hooks(layers)
    config = config_of(model)
    implementation = attention_implementation(config)
    if implementation == "sdpa":
        set_attention_implementation(config, _ATTENTION)

    def undo() -> None:
        set_attention_implementation(config, implementation)
        for hook in hooks:
            hook.remove()
        for parameter, data in zip(frozen, originals, strict=True):
            parameter.data = data

    return undo, "bfloat16"


# The changes of a single step, in this order; a model without weights can have them, too.
UNCOMPILED_CHANGES: tuple[tuple[str, Change], ...] = (
    ("first_token", _first_token),
    ("lora_layers", _lora_layers),
    ("dtype", _half),
)


def _lower_layers(texts: TextsToCache, model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    """Cache the outputs of the frozen layers below all trained layers, which then run once per text."""
    count = frozen_below(model) if "num_virtual_tokens" not in METHODS[method].settings else 0
    layers = encoder_layers(model)
    if not count or layers is None:
        return None, None
    if not texts.fit(config_of(model).hidden_size * next(layers.parameters()).element_size()):
        message = (
            "The frozen layers run in every epoch: there is too little disk space to cache their outputs."
        )
        logger.info(message)
        return None, None
    cache = FrozenLayerCache(model, count, texts.folder)
    try:
        cache.fill(texts)
    except OSError:  # the disk is full: the layers run in each epoch
        cache.close()
        return None, None
    except BaseException:
        cache.close()
        raise
    return cache.close, count


def _compiled(model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    """Compile each trained layer for batches of any shape, so that one compilation serves them all."""
    layers = encoder_layers(model)
    if layers is None or getattr(model, "is_quantized", False):
        return None, None
    trained = [layer for layer in layers if any(p.requires_grad for p in layer.parameters())]
    for layer in trained:
        layer.compile(dynamic=True)

    def undo() -> None:
        for layer in trained:
            undo_compile(layer)

    return undo, True


def _compiling_pays(model: nn.Module, batch: dict[str, torch.Tensor], steps: int) -> bool:
    """Whether a GPU would save more time over `steps` steps than the compilation takes.

    False if the batch does not fit into its memory.
    """
    if not next(model.parameters()).is_cuda:
        return False
    try:
        gradient(model, batch)
    except torch.OutOfMemoryError:
        return False
    return steps * COMPILED_SAVES * measure_seconds(lambda: gradient(model, batch)) > COMPILING_TAKES


def _narrow_hooks(layers: nn.ModuleList) -> list[Any]:
    """Convert the inputs of the layers to bfloat16, and the output of the last layer to float32.

    Every layer has a hook, because some models give each a float32 mask or position bias (MPNet, DeBERTa).
    """
    hooks = [layer.register_forward_pre_hook(_narrow, with_kwargs=True) for layer in layers]
    return [*hooks, layers[-1].register_forward_hook(_widen)]


def _narrow(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return tuple(map(_to_bfloat16, args)), {name: _to_bfloat16(arg) for name, arg in kwargs.items()}


def _to_bfloat16(arg: Any) -> Any:
    """Convert a float32 tensor to bfloat16, and return anything else unchanged."""
    if not (isinstance(arg, torch.Tensor) and arg.dtype == torch.float32):
        return arg
    # float32's lowest number, which masks contain, would become -inf
    lowest = torch.finfo(torch.bfloat16).min
    return (arg.clamp_min(lowest) if arg.dim() == 4 else arg).to(torch.bfloat16)


def _widen(_: nn.Module, __: tuple, output: Any) -> Any:
    return (output[0].float(), *output[1:]) if isinstance(output, tuple) else output.float()


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Run `kernels.attention` with the interface of transformers, or transformers' own where it is needed."""
    if scaling is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return attention(query, key, value, attention_mask, scaling, dropout).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _is_plain(layer: Any) -> bool:
    """Whether a LoRA layer only adds scaling B A to the frozen weight of a linear layer."""
    name = layer.active_adapters[0]
    return (
        len(layer.active_adapters) == 1
        and isinstance(layer.get_base_layer(), nn.Linear)
        and type(layer.get_base_layer()) is nn.Linear
        and not layer.get_base_layer().weight.requires_grad
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
    )


def _fused_forward(layer: Any) -> Callable[..., torch.Tensor]:
    """Return a `forward` of a LoRA layer as one operation."""
    base, name = layer.get_base_layer(), layer.active_adapters[0]

    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        return lora_linear(x, base.weight, base.bias, a, b, layer.scaling[name])

    return forward


def _replace_forwards(forwards: list[tuple[nn.Module, Callable]]) -> Undo:
    """Replace the `forward` of each module, and return the function that undoes it."""
    for module, forward in forwards:
        module.forward = forward

    def undo() -> None:
        for module, _ in forwards:
            del module.forward

    return undo
