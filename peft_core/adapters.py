"""From a TrainConfig and a base model to the model that is trained, by PEFT's own classes."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import peft
import torch
from peft import (
    PeftConfig,
    PeftModel,
    PromptTuningInit,
    TaskType,
    get_peft_model,
    initialize_lora_eva_weights,
    prepare_model_for_kbit_training,
)
from peft.optimizers import create_loraplus_optimizer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import TrainerCallback

from peft_core.config import TrainConfig
from peft_core.errors import ModelError
from peft_core.methods import METHODS, peft_settings, unworkable_on
from peft_core.modules import (
    HEAD_NAMES,
    check_target_modules,
    expand_target_modules,
    feedforward_modules,
    layer_norms,
)
from peft_core.schedule import adalora_schedule
from peft_core.sources import Source


def apply_method(
    model: nn.Module,
    config: TrainConfig,
    untrained: Sequence[str] = (),
    *,
    base: Source | None = None,
    steps: int = 100,
) -> nn.Module:
    """The model with only the chosen method's parameters, its head and what starts untrained trainable.

    A PeftModel, or the model itself for head_only, bitfit and full. `base` is where the model came from: the
    adapter names it, and prompt tuning starts from its tokenizer's words. `steps` are those of the whole
    training, which AdaLoRA's schedule needs. On a model without weights (meta device) starts that are
    computed from the weights are left out. Raises ModelError if the method cannot work on this model, or
    `target_modules` match nothing.
    """
    reason = unworkable_on(config.to_dict(), model.config.model_type)
    if reason:
        raise ModelError(reason)
    if METHODS[config.method].peft_config is None:
        _choose_trainable(model, config.method, untrained)
        return model
    peft_config = _peft_config(model, config, untrained, steps)
    if base:
        peft_config.base_model_name_or_path, peft_config.revision = base.name, base.commit
    if getattr(model, "is_quantized", False):
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if base and config.method == "prompt_tuning":
        _start_from_labels(peft_config, model, base)
    try:
        adapted = get_peft_model(model, peft_config)
    except (ValueError, AssertionError) as error:  # sizes that do not divide, said in PEFT's words
        label = METHODS[config.method].label
        raise ModelError(f"{label} cannot be built on this model: {str(error).splitlines()[0]}") from error
    if base and config.method == "prompt_tuning":
        peft_config.tokenizer_name_or_path = base.name  # no path of this machine leaves with the adapter
    for name, parameter in adapted.named_parameters():
        if "ranknum" in name:  # AdaLoRA's note of a rank, which on the meta device would seem trainable
            parameter.requires_grad_(False)
    return adapted


def _start_from_labels(peft_config: PeftConfig, model: nn.Module, base: Source) -> None:
    """Virtual tokens start as the label names (Lester et al. 2021, section 3.2) as the tokenizer writes them.

    Its [CLS] comes first and takes the place from which the head reads, which is the first token's.
    """
    peft_config.prompt_tuning_init = PromptTuningInit.TEXT
    peft_config.prompt_tuning_init_text = " ".join(model.config.id2label.values())
    peft_config.tokenizer_name_or_path = str(base.folder)


def start_from_data(model: nn.Module, batches: Iterable[dict[str, Any]]) -> None:
    """Where the method starts from the training data (EVA), look at these batches; else nothing."""
    if _starts_with(model, "eva"):
        texts = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
        initialize_lora_eva_weights(model.eval(), texts, show_progress_bar=False)


def optimizer_of(
    model: nn.Module, config: TrainConfig, optimizer_class: type, **arguments: Any
) -> torch.optim.Optimizer | None:
    """LoRA+'s optimizer where it is asked for, or None for Trainer's own."""
    if config.method != "lora" or config.loraplus_lr_ratio == 1.0:
        return None
    return create_loraplus_optimizer(
        model,
        optimizer_class,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
        loraplus_weight_decay=config.weight_decay,
        **arguments,
    )


class RankSchedule(TrainerCallback):
    """Lets AdaLoRA look at the gradients and move its ranks after each optimizer step."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if _is_adalora(model):
            model.base_model.update_and_allocate(state.global_step + 1)


def rank_allocator(model: nn.Module) -> Any | None:
    """PEFT's RankAllocator, which holds what AdaLoRA knows of its matrices; None for another method."""
    return model.base_model.rankallocator if _is_adalora(model) else None


@contextlib.contextmanager
def without_regularizer(model: nn.Module) -> Iterator[None]:
    """The model's own loss is of its labels alone: AdaLoRA otherwise adds its orthogonality term to it."""
    allocator = rank_allocator(model)
    if allocator is None:
        yield
        return
    weight = allocator.peft_config.orth_reg_weight
    allocator.peft_config.orth_reg_weight = 0.0
    try:
        yield
    finally:
        allocator.peft_config.orth_reg_weight = weight


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is trained, by the model's own parameter names."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def merged_model(model: nn.Module) -> nn.Module:
    """A plain model with the adapter in its weights; ValueError if a weight would not be a number.

    Each part that was trained whole first takes the place of its wrapper: PEFT 0.21 itself does that, with
    most methods, only for parts that are a single layer, which RoBERTa's head is not.
    """
    if not isinstance(model, PeftModel):
        return model
    for path, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.modules_to_save[module.active_adapter])
    return model.merge_and_unload(safe_merge=True)


def _peft_config(model: nn.Module, config: TrainConfig, untrained: Sequence[str], steps: int) -> PeftConfig:
    """PEFT's own config; every module that starts untrained is trained whole and saved with the adapter."""
    method = METHODS[config.method]
    own = peft_settings(config.to_dict())
    beside_head = [name for name in untrained if name.split(".")[0] not in HEAD_NAMES]
    if method.takes_target_modules:
        check_target_modules(model, config.target_modules, config.top_layers)
        own["target_modules"] = list(expand_target_modules(model, config.target_modules, config.top_layers))
    own |= _EXTRA.get(config.method, lambda *_: {})(model, config, steps)
    return getattr(peft, method.peft_config)(
        task_type=TaskType.SEQ_CLS, modules_to_save=beside_head or None, **own
    )


def _lora(model: nn.Module, config: TrainConfig, steps: int) -> dict[str, Any]:
    start = config.init_lora_weights
    if start == "default" or _has_no_weights(model):
        return {}
    # ranks stay as they were asked for: with rho above 1 EVA would move them between the weights
    eva = {"eva_config": peft.EvaConfig(rho=1.0)} if start == "eva" else {}
    return {"init_lora_weights": start, **eva}


def _adalora(model: nn.Module, config: TrainConfig, steps: int) -> dict[str, Any]:
    return adalora_schedule(steps)


def _ia3(model: nn.Module, config: TrainConfig, steps: int) -> dict[str, Any]:
    """A vector scales the input of an MLP's matrix, the output of any other."""
    names = expand_target_modules(model, config.target_modules, config.top_layers)
    return {"feedforward_modules": list(feedforward_modules(model, names))}


def _prompt(model: nn.Module, config: TrainConfig, steps: int) -> dict[str, Any]:
    """The sizes that PEFT would read from names that not every architecture has."""
    shape = model.config
    return {
        "token_dim": model.get_input_embeddings().embedding_dim,  # not the hidden size in ALBERT and ELECTRA
        "num_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
    }


def _prefix(model: nn.Module, config: TrainConfig, steps: int) -> dict[str, Any]:
    return {**_prompt(model, config, steps), "token_dim": model.config.hidden_size}


def _norms(model: nn.Module, config: TrainConfig, steps: int) -> dict[str, Any]:
    return {"target_modules": list(layer_norms(model))}


_EXTRA = {
    "lora": _lora,
    "adalora": _adalora,
    "ia3": _ia3,
    "prompt_tuning": _prompt,
    "p_tuning": _prompt,
    "prefix_tuning": _prefix,
    "ln_tuning": _norms,
}


def _choose_trainable(model: nn.Module, method: str, untrained: Sequence[str]) -> None:
    for name, parameter in model.named_parameters():
        whole = any(part.endswith(HEAD_NAMES) for part in name.split(".")) or any(
            name.startswith(f"{module}.") for module in untrained
        )
        bias = method == "bitfit" and name.endswith(".bias")
        parameter.requires_grad_(method == "full" or whole or bias)


def _is_adalora(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) and isinstance(model.base_model, peft.AdaLoraModel)


def _has_no_weights(model: nn.Module) -> bool:
    return next(model.parameters()).is_meta


def _starts_with(model: nn.Module, start: str) -> bool:
    configs = model.peft_config.values() if isinstance(model, PeftModel) else ()
    return any(getattr(one, "init_lora_weights", None) == start for one in configs)
