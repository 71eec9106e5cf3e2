"""Apply a fine-tuning method to a base model with PEFT's own classes, and merge the adapter again."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import peft
import torch
from peft import (
    AdaLoraModel,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
    get_peft_model,
    initialize_lora_eva_weights,
    prepare_model_for_kbit_training,
)
from peft.optimizers import create_loraplus_optimizer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from peft_core.config import TrainConfig
from peft_core.errors import ModelError
from peft_core.methods.registry import METHODS, find_model_conflict, peft_settings
from peft_core.models.modules import (
    HEAD_NAMES,
    check_target_modules,
    expand_target_modules,
    feedforward_modules,
    layer_norms,
)
from peft_core.models.sources import Source
from peft_core.training.schedule import adalora_schedule


def apply_method(
    model: nn.Module,
    config: TrainConfig,
    untrained: Sequence[str] = (),
    *,
    base: Source | None = None,
    steps: int = 100,
) -> nn.Module:
    """Return the model with only the method's parameters, the head and `untrained` modules trainable.

    On the meta device, initializations that are computed from the weights are left out.

    Args:
        model: A transformers classifier.
        config: The run's settings.
        untrained: Names of the modules that the checkpoint has no weights for.
        base: Where the model comes from. It is named in the adapter, and its tokenizer initializes prompt
            tuning.
        steps: Optimizer steps of the whole training, for AdaLoRA's schedule.

    Returns:
        A PeftModel, or the model itself for head_only, bitfit and full.

    Raises:
        ModelError: If the method does not support this model, or `target_modules` match nothing.
    """
    assert isinstance(model, PreTrainedModel)
    reason = find_model_conflict(config.to_dict(), model.config.model_type)
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
    if base and isinstance(peft_config, PromptTuningConfig):
        _initialize_from_labels(peft_config, model, base)
    try:
        adapted = get_peft_model(model, peft_config)
    except (ValueError, AssertionError) as error:  # PEFT's errors for sizes that do not divide
        label = METHODS[config.method].label
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{label} cannot be built on this model: {reason}") from error
    if base and isinstance(peft_config, PromptTuningConfig):
        peft_config.tokenizer_name_or_path = base.name  # saved with the adapter: not a path of this machine
    for name, parameter in adapted.named_parameters():
        if "ranknum" in name:  # AdaLoRA's record of a rank, which counts as trainable on the meta device
            parameter.requires_grad_(False)
    return adapted


def _initialize_from_labels(peft_config: PromptTuningConfig, model: PreTrainedModel, base: Source) -> None:
    """Initialize virtual tokens with the tokenized label names (Lester et al. 2021, section 3.2).

    The tokenizer's [CLS] comes first, at the position that the head reads.
    """
    id2label = model.config.id2label
    assert id2label is not None
    peft_config.prompt_tuning_init = PromptTuningInit.TEXT
    peft_config.prompt_tuning_init_text = " ".join(id2label.values())
    peft_config.tokenizer_name_or_path = str(base.folder)


def initialize_from_data(model: nn.Module, batches: Iterable[dict[str, Any]]) -> None:
    """Initialize LoRA weights from training batches if the adapter is configured for EVA; else do nothing."""
    if _uses_initialization(model, "eva"):
        inputs = [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in batches]
        initialize_lora_eva_weights(model.eval(), inputs, show_progress_bar=False)


def loraplus_optimizer(
    model: nn.Module, config: TrainConfig, optimizer_class: type, **arguments: Any
) -> torch.optim.Optimizer | None:
    """Return a LoRA+ optimizer if the settings ask for one, or None for Trainer's own optimizer."""
    if config.method != "lora" or config.loraplus_lr_ratio == 1.0:
        return None
    assert isinstance(model, PeftModel)
    return create_loraplus_optimizer(
        model,
        optimizer_class,
        loraplus_lr_ratio=config.loraplus_lr_ratio,
        loraplus_weight_decay=config.weight_decay,
        **arguments,
    )


class RankSchedule(TrainerCallback):
    """Callback that lets AdaLoRA reallocate its ranks by the gradients after each optimizer step."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        adalora = _adalora_model(model)
        if adalora is not None:
            adalora.update_and_allocate(state.global_step + 1)


def rank_allocator(model: nn.Module) -> Any | None:
    """Return PEFT's RankAllocator, which holds AdaLoRA's importance scores; None for another method."""
    adalora = _adalora_model(model)
    return None if adalora is None else adalora.rankallocator


@contextlib.contextmanager
def without_regularizer(model: nn.Module) -> Iterator[None]:
    """Leave AdaLoRA's orthogonality term out of the model's loss inside the context."""
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
    """Return the trainable parameters by name."""
    return {
        name: parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def merged_model(model: nn.Module) -> nn.Module:
    """Return a plain model with the adapter merged into its weights.

    Each fully trained module (`modules_to_save`) first replaces its wrapper: with most methods PEFT 0.21 does
    that only for single layers, which RoBERTa's head is not.

    Raises:
        ValueError: If a merged weight would be NaN or infinite.
    """
    if not isinstance(model, PeftModel):
        return model
    for path, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.modules_to_save[module.active_adapters[0]])
    return model.merge_and_unload(safe_merge=True)


def _peft_config(
    model: PreTrainedModel, config: TrainConfig, untrained: Sequence[str], steps: int
) -> PeftConfig:
    """Return PEFT's config; `untrained` modules are fully trained and saved with the adapter."""
    method = METHODS[config.method]
    assert method.peft_config is not None
    settings = peft_settings(config.to_dict())
    # PEFT adds the head itself
    modules_to_save = [name for name in untrained if name.split(".")[0] not in HEAD_NAMES]
    if method.takes_target_modules:
        check_target_modules(model, config.target_modules, config.top_layers)
        settings["target_modules"] = list(
            expand_target_modules(model, config.target_modules, config.top_layers)
        )
    settings |= _EXTRA_SETTINGS.get(config.method, lambda *_: {})(model, config, steps)
    return getattr(peft, method.peft_config)(
        task_type=TaskType.SEQ_CLS, modules_to_save=modules_to_save or None, **settings
    )


def _lora(model: PreTrainedModel, config: TrainConfig, steps: int) -> dict[str, Any]:
    initialization = config.init_lora_weights
    if initialization == "default" or _is_meta(model):
        return {}
    # with rho above 1 EVA would redistribute the configured ranks between the weights
    eva = {"eva_config": peft.EvaConfig(rho=1.0)} if initialization == "eva" else {}
    return {"init_lora_weights": initialization, **eva}


def _adalora(model: PreTrainedModel, config: TrainConfig, steps: int) -> dict[str, Any]:
    return adalora_schedule(steps)


def _ia3(model: PreTrainedModel, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Name the feed-forward modules, where IA3 scales the input; elsewhere it scales the output."""
    names = expand_target_modules(model, config.target_modules, config.top_layers)
    return {"feedforward_modules": list(feedforward_modules(model, names))}


def _prompt(model: PreTrainedModel, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Return the sizes that PEFT would read from attributes that not every architecture has."""
    return {
        "token_dim": model.get_input_embeddings().embedding_dim,  # not the hidden size in ALBERT and ELECTRA
        "num_layers": _architecture(model).num_hidden_layers,
        "num_attention_heads": _architecture(model).num_attention_heads,
    }


def _prefix(model: PreTrainedModel, config: TrainConfig, steps: int) -> dict[str, Any]:
    return {**_prompt(model, config, steps), "token_dim": _architecture(model).hidden_size}


def _architecture(model: PreTrainedModel) -> Any:
    return cast(Any, model.config)  # the sizes are attributes of each architecture's subclass only


def _norms(model: PreTrainedModel, config: TrainConfig, steps: int) -> dict[str, Any]:
    return {"target_modules": list(layer_norms(model))}


_EXTRA_SETTINGS = {
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
        is_new = any(part.endswith(HEAD_NAMES) for part in name.split(".")) or any(
            name.startswith(f"{module}.") for module in untrained
        )
        is_bitfit_bias = method == "bitfit" and name.endswith(".bias")
        parameter.requires_grad_(method == "full" or is_new or is_bitfit_bias)


def _adalora_model(model: nn.Module) -> AdaLoraModel | None:
    tuner = model.base_model if isinstance(model, PeftModel) else None
    return tuner if isinstance(tuner, AdaLoraModel) else None


def _is_meta(model: nn.Module) -> bool:
    return next(model.parameters()).is_meta


def _uses_initialization(model: nn.Module, initialization: str) -> bool:
    configs = model.peft_config.values() if isinstance(model, PeftModel) else ()
    return any(getattr(config, "init_lora_weights", None) == initialization for config in configs)
