"""The fine-tuning methods: what each is, reads, can merge and cannot do. A table, without PEFT itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Method:
    """One row of the table.

    `settings` are the names in TrainConfig that this method reads beside the training settings; `defaults`
    are its own values where TrainConfig's are another method's. `peft_config` is the name of PEFT's class, or
    None where weights of the model itself are trained. `cannot_merge` and `impossible` (by `model_type`, or
    "*" for every encoder) give reasons in words; `note` is what a person should know before choosing it.
    """

    label: str
    help: str
    source: str
    settings: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    peft_config: str | None = None
    cannot_merge: str = ""
    impossible: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def takes_target_modules(self) -> bool:
        return "target_modules" in self.settings

    def cannot(self, model_type: str) -> str:
        """Why it cannot be used on this kind of encoder, or an empty text."""
        return self.impossible.get(model_type, self.impossible.get("*", ""))


def _values(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(values)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lora": Method(
            "LoRA",
            "Two thin matrices beside each chosen weight.",
            "Hu et al. 2021, arXiv:2106.09685",
            ("target_modules", "r", "lora_alpha", "lora_dropout"),
            peft_config="LoraConfig",
        ),
        "head_only": Method(
            "Head only",
            "The model stays as it is; the classification head alone is trained.",
            "the usual baseline, also called linear probing",
        ),
        "full": Method(
            "Full fine-tuning",
            "Every weight is trained.",
            "the usual baseline",
            defaults=_values(learning_rate=5e-5),
        ),
    }
)


def defaults_of(method: Any) -> Mapping[str, Any]:
    """A method's own default settings; empty for LoRA, and for what is no method."""
    return METHODS[method].defaults if isinstance(method, str) and method in METHODS else {}


def unworkable(settings: Mapping[str, Any]) -> str:
    """Why these settings cannot work together on any model, or an empty text."""
    return ""
