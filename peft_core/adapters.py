"""The PEFT methods: from a TrainConfig and a base model to the model that is trained."""

from collections.abc import Sequence

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from peft_core.config import TrainConfig
from peft_core.encoder import HEAD_NAMES, check_target_modules
from peft_core.errors import ConfigError
from peft_core.methods import METHODS

TRAINABLE = ("lora",)


def check_trainable(config: TrainConfig) -> None:
    """Raise ConfigError for a method that is counted as a baseline but not trained here."""
    if config.method not in TRAINABLE:
        raise ConfigError(
            f"{METHODS[config.method].label} is counted for comparison, not trained; choose method lora."
        )


def lora_config(
    config: TrainConfig,
    untrained: Sequence[str] = (),
    *,
    base: str | None = None,
    revision: str | None = None,
) -> LoraConfig:
    """PEFT's own config; every module that starts untrained is trained whole and saved with the adapter."""
    beside_head = [name for name in untrained if name.split(".")[0] not in HEAD_NAMES]
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        modules_to_save=beside_head or None,
        base_model_name_or_path=base,
        revision=revision,
    )


def apply_method(model: nn.Module, config: TrainConfig, peft_config: LoraConfig) -> nn.Module:
    """The model with only the chosen method's parameters trainable; a PeftModel for LoRA.

    Raises ModelError if `target_modules` match nothing.
    """
    if config.method == "lora":
        return add_lora(model, peft_config)
    for name, parameter in model.named_parameters():
        in_head = any(part.endswith(HEAD_NAMES) for part in name.split("."))
        parameter.requires_grad_(config.method == "full" or in_head)
    return model


def add_lora(model: nn.Module, peft_config: LoraConfig) -> PeftModel:
    """The base model with LoRA beside its target modules, everything else but the head frozen."""
    check_target_modules(model, sorted(peft_config.target_modules))
    return get_peft_model(model, peft_config)
