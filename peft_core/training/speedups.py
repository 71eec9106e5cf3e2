"""Makes a model's training step faster for as long as it trains, and checks that it stays the same step."""

import contextlib
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

from peft_core.config import TrainConfig
from peft_core.machine import gains_by_half, seconds
from peft_core.methods import METHODS, TRAINS_LAYERS
from peft_core.modules import encoder_layers
from peft_core.training.admission import PlainStep, gradient
from peft_core.training.fallback import AppliedSpeedups, Speedups
from peft_core.training.first_token import first_token_forward
from peft_core.training.kernels import attention, lora_linear
from peft_core.training.lower_layers import LowerLayers, Texts, frozen_below

WORTH_IT = 1_000_000  # frozen weights in the layers from which half-width numbers are tried
EXACT, HALF = 1e-4, 0.1  # the most that a step's gradient may move, by norm, against the plain step's
COMPILING_TAKES, COMPILED_SAVES = 150.0, 0.3  # seconds, and the share of a step; on a GPU
_ATTENTION = "peft_core"

Undo = Callable[[], None]
Change = Callable[[nn.Module, str], tuple[Undo | None, Any]]


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Layers that are compiled run as they are: a few batches are not worth a compilation of their own."""
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def faster(
    model: nn.Module,
    config: TrainConfig,
    batch: dict[str, torch.Tensor],
    steps: int,
    before: Speedups | None = None,
    texts: Texts | None = None,
) -> Iterator[AppliedSpeedups]:
    """The model with every speed-up that leaves a step's gradient as it is; plain again at the end.

    The gradients are compared on texts of this batch, with and without an attention mask.

    The last layer runs for the first token alone, and plain LoRA layers as one operation each: both move a
    gradient by rounding alone (EXACT). Where the machine multiplies bfloat16 faster, the layers' frozen
    weights go there; what is trained stays float32 (HALF). Frozen layers below all that is trained run once
    for each of the `texts`, where those are read more than once. On a GPU the layers are compiled where that
    pays within so many `steps`. A change that moves the gradient by more is taken back, whatever the reason.
    `before`, from a run that is continued, allows those of that run alone. With the arithmetic "plain" there
    is none.
    """
    with contextlib.ExitStack() as stack:
        done = Speedups()
        if config.arithmetic == "fast":
            compiles = config.torch_compile == "on" or (
                config.torch_compile == "auto" and _compiling_pays(model, batch, steps)
            )
            again = config.num_train_epochs > 1 and not config.dropout
            changes = [
                *UNCOMPILED_CHANGES,
                *[("lower_layers", partial(_lower_layers, texts))] * bool(texts and again),
                *[("compiled", _compiled)] * compiles,
            ]
            done = _all_that_hold(stack, model, config.method, batch, changes, before)
        yield AppliedSpeedups(model, done, stack)


def _all_that_hold(
    stack: contextlib.ExitStack,
    model: nn.Module,
    method: str,
    batch: dict[str, torch.Tensor],
    changes: list[tuple[str, Change]],
    before: Speedups | None,
) -> Speedups:
    if before is not None and before.failed:
        return before
    plain, done = PlainStep(model, batch), Speedups()
    for name, change in changes:
        if before is not None and getattr(before, name) == getattr(done, name):
            continue
        undo, value = change(model, method)
        if undo is None:
            continue
        error = plain.gradient_error(model)
        rounds = name in ("dtype", "compiled") or done.dtype != "float32"
        if error <= (HALF if rounds else EXACT):
            stack.callback(undo)
            done = replace(done, gradient_error=error, **{name: value})
        else:
            moved = f"the change would move the gradient by {error:.1e}" if error < math.inf else "it fails"
            print(f"{name} stays as it is: {moved}")
            undo()
    return replace(done, autocast=done.dtype == "float32" and next(model.parameters()).is_cuda)


def _first_token(model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    layers = encoder_layers(model)
    forward = first_token_forward(layers[-1]) if layers else None
    if forward is None or method == "prefix_tuning":  # which gives each layer keys and values of its own
        return None, None
    return _replaced([(layers[-1], forward)]), True


def _lora_layers(model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    chosen = [m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear) and _is_plain(m)]
    if not chosen:
        return None, None
    return _replaced([(layer, _one_operation(layer)) for layer in chosen]), len(chosen)


def _half(model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    """The layers' frozen weights, and what flows between the layers, in bfloat16."""
    layers = encoder_layers(model)
    if layers is None or method in TRAINS_LAYERS or getattr(model, "is_quantized", False):
        return None, None
    own = getattr(model.base_model, "prefix", None)  # in the names of a method's own parameters
    frozen = [
        parameter
        for name, parameter in layers.named_parameters()
        if not parameter.requires_grad and not (own and own in name)
    ]
    device = next(model.parameters()).device
    if sum(p.numel() for p in frozen) < WORTH_IT or not gains_by_half(device):
        return None, None
    wide = [parameter.data for parameter in frozen]  # which lie in the file that was loaded, not in memory
    for parameter in frozen:
        parameter.data = parameter.data.to(torch.bfloat16)
    hooks = _narrow_hooks(layers)
    implementation = model.config._attn_implementation
    if implementation == "sdpa":
        model.config._attn_implementation = _ATTENTION

    def undo() -> None:
        model.config._attn_implementation = implementation
        for hook in hooks:
            hook.remove()
        for parameter, data in zip(frozen, wide, strict=True):
            parameter.data = data

    return undo, "bfloat16"


# What changes a step in itself, in this order; a model without weights can take it, too.
UNCOMPILED_CHANGES: tuple[tuple[str, Change], ...] = (
    ("first_token", _first_token),
    ("lora_layers", _lora_layers),
    ("dtype", _half),
)


def _lower_layers(texts: Texts, model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    """The frozen layers below all that is trained run once for each text; what they make lies on the disk."""
    count = frozen_below(model) if "num_virtual_tokens" not in METHODS[method].settings else 0
    if not count:
        return None, None
    bytes_a_token = model.config.hidden_size * next(encoder_layers(model).parameters()).element_size()
    if not texts.fit(bytes_a_token):
        print("The frozen layers run in each epoch: the disk has no room for what they make of the texts.")
        return None, None
    lower = LowerLayers(model, count, texts.folder)
    try:
        lower.fill(texts)
    except OSError:  # the disk is full: they run each time, as ever
        lower.close()
        return None, None
    except BaseException:
        lower.close()
        raise
    return lower.close, count


def _compiled(model: nn.Module, method: str) -> tuple[Undo | None, Any]:
    """Each layer compiled for batches of any shape: one compilation serves them all."""
    layers = encoder_layers(model)
    if layers is None or getattr(model, "is_quantized", False):
        return None, None
    layers = [layer for layer in layers if any(p.requires_grad for p in layer.parameters())]
    for layer in layers:
        layer.compile(dynamic=True)

    def undo() -> None:
        for layer in layers:
            layer._compiled_call_impl = None

    return undo, True


def _compiling_pays(model: nn.Module, batch: dict[str, torch.Tensor], steps: int) -> bool:
    """Whether a GPU, if it holds the batch, would save more of so many steps than the compilation takes."""
    if not next(model.parameters()).is_cuda:
        return False
    try:
        gradient(model, batch)
    except torch.OutOfMemoryError:
        return False
    return steps * COMPILED_SAVES * seconds(lambda: gradient(model, batch)) > COMPILING_TAKES


def _narrow_hooks(layers: nn.ModuleList) -> list[Any]:
    """What flows into the layers becomes bfloat16, what leaves them float32 again.

    Every layer is hooked, because some models give each a float32 mask or position bias (MPNet, DeBERTa).
    """
    hooks = [layer.register_forward_pre_hook(_narrow, with_kwargs=True) for layer in layers]
    return [*hooks, layers[-1].register_forward_hook(_widen)]


def _narrow(_: nn.Module, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return tuple(map(_to_half, given)), {name: _to_half(value) for name, value in named.items()}


def _to_half(value: Any) -> Any:
    if not (isinstance(value, torch.Tensor) and value.dtype == torch.float32):
        return value
    # float32's lowest number, which a mask holds, would become -inf
    lowest = torch.finfo(torch.bfloat16).min
    return (value.clamp_min(lowest) if value.dim() == 4 else value).to(torch.bfloat16)


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
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """`kernels.attention` as transformers calls it; what it does not do goes to transformers' own."""
    if scaling is None or named.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **named
        )
    return attention(query, key, value, attention_mask, scaling, dropout).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _is_plain(layer: Any) -> bool:
    """Whether a LoRA layer adds scaling B A to a linear layer's weight and nothing else."""
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


def _one_operation(layer: Any) -> Callable[..., torch.Tensor]:
    base, name = layer.get_base_layer(), layer.active_adapters[0]

    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        return lora_linear(x, base.weight, base.bias, a, b, layer.scaling[name])

    return forward


def _replaced(forwards: list[tuple[nn.Module, Callable]]) -> Undo:
    """Give each module another `forward`, and return what takes it away again."""
    for module, forward in forwards:
        module.forward = forward

    def undo() -> None:
        for module, _ in forwards:
            del module.forward

    return undo
