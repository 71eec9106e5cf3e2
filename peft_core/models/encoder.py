"""Load a base model: its configuration, maximum length, classification head and untrained modules."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from peft_core.config import TrainConfig
from peft_core.errors import ModelError, reason_of
from peft_core.models.heads import BY_NAME, HeadChange, are_generic, head_labels, head_rows
from peft_core.models.modules import HEAD_NAMES, config_of, full_precision_modules, output_layer
from peft_core.models.presets import MODELS
from peft_core.models.quantization import FULL, compute_in_float32, quantization_kwargs
from peft_core.models.sources import Source, is_local, model_source

# transformers creates an empty tokenizer without any of these files
_VOCABULARY_FILES = ("tokenizer.json", "vocab*", "*.model")
_OFFSET_POSITIONS = (  # model types that number positions from the padding id on
    "roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "data2vec-text",
    "longformer", "mpnet", "xmod", "ibert", "luke",
)  # fmt: skip


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model with its tokenizer.

    Attributes:
        untrained: Names of the modules that the checkpoint lacks.
        head_change: How the checkpoint's head was changed; None if it was not.
    """

    model: PreTrainedModel
    tokenizer: Any
    untrained: tuple[str, ...]
    source: Source
    head_change: HeadChange | None = None

    @property
    def head_is_fresh(self) -> bool:
        """Whether the classification head started untrained."""
        return any(name.split(".")[0] in HEAD_NAMES for name in self.untrained)


def model_config(name: str, revision: str | None = None) -> Any:
    """Return the configuration of a model: a preset's own, or that of its `config.json`.

    Raises:
        ModelError: The model is not an encoder with a sequence classifier.
    """
    preset = MODELS.get(name)
    if preset is not None and preset.config:
        config = AutoConfig.for_model(**preset.config)
    else:
        config = _read_config(name, model_source(name, revision, weights=False))
    kind = config.model_type
    if kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise ModelError(
            f"{name!r} is a {kind} model, which has no sequence classifier; choose an encoder like BERT."
        )
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise ModelError(
            f"{name!r} is a {kind} model, which is not an encoder; choose one like BERT, RoBERTa or ELECTRA."
        )
    return config


def local_config(name: str, revision: str | None = None) -> Any | None:
    """Like `model_config`, but return None if the configuration is not on this machine yet."""
    if name not in MODELS and not is_local(name):
        try:
            return AutoConfig.from_pretrained(
                name, revision=revision, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError):
            return None
    return model_config(name, revision)


def meta_model(config: Any, num_labels: int) -> PreTrainedModel:
    """Return the sequence classifier on the meta device: every shape, no weights."""
    config.num_labels = num_labels
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def max_input_length(config: Any) -> int:
    """Return the largest number of tokens that the model's position embeddings allow."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    if config.model_type in _OFFSET_POSITIONS:
        return positions - (config.pad_token_id or 0) - 1
    return positions


def check_max_length(config: Any, max_length: int, virtual_tokens: int = 0) -> None:
    """Raise ModelError if `max_length` plus a method's virtual tokens exceeds the model's maximum length."""
    limit = max_input_length(config)
    if max_length + virtual_tokens > limit:
        beside = f" beside {virtual_tokens} virtual tokens" if virtual_tokens else ""
        raise ModelError(
            f"max_length is {max_length}; this model reads at most {limit - virtual_tokens} tokens{beside}."
        )


def load_base(
    name: str,
    revision: str | None,
    label_names: Sequence[str],
    *,
    has_label_names: bool = True,
    problem_type: str = "single_label_classification",
    bits: int = FULL,
    base_head: str = BY_NAME,
) -> BaseModel:
    """Load a base model with a head for these labels; a head of another size is initialized anew.

    Args:
        name: Name on the Hub, folder, or preset.
        revision: Revision on the Hub.
        label_names: The labels in order; empty for a regression, which has one output.
        has_label_names: False if the labels are bare numbers; a kept head then keeps its own label names.
        problem_type: transformers' `problem_type`.
        bits: Bits of the encoder's matrices; below 32 they are quantized.
        base_head: What to do with a head of the right size: `by_name` and `by_order` keep it, with its rows
            in the order of the labels, and `fresh` replaces it.

    Raises:
        ModelError: The model cannot be loaded, or the names of its head and of the data do not match.
        HubError: The model cannot be fetched.
    """
    source = model_source(name, revision)
    quantization = _quantization_kwargs(name, source, bits)
    label_names = label_names or ("value",)  # the one output of a regression
    if not has_tokenizer(source.folder):
        raise ModelError(f"{name!r} cannot be loaded: it has no tokenizer; save one beside the model.")
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.folder,
            num_labels=len(label_names),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            **quantization,
        )
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name!r} cannot be loaded: {_first_line(error)}") from error
    compute_in_float32(model)
    model.name_or_path = model.config.name_or_path = source.name
    base = BaseModel(model, tokenizer, _untrained(report), source)
    names = tuple(label_names)
    if not base.head_is_fresh:
        head = tuple(name for _, name in sorted(model.config.id2label.items()))
        rows = head_rows(label_names, head, problem_type, base_head, name)
        base = _with_head_rows(base, rows)
        if rows and not has_label_names and not are_generic(head):
            names = tuple(head[row] for row in rows)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {label: i for i, label in enumerate(names)}
    model.config.problem_type = problem_type
    return base


def plan_head(config: TrainConfig, labels: Sequence[str], problem_type: str) -> HeadChange | None:
    """Return the change that `load_base` will make to the declared head; None if there is none to change.

    Reads the configuration only. Raises ModelError as `load_base` and `model_config` do.
    """
    shape = model_config(config.model_name_or_path, config.revision)
    head = head_labels(shape)
    if head is None or len(head) != (len(labels) or 1):
        return None
    rows = head_rows(labels, head, problem_type, config.base_head, config.model_name_or_path)
    if rows == tuple(range(len(head))):
        return None
    path_and_layer = output_layer(meta_model(shape, len(head)), len(head))
    return HeadChange(path_and_layer[0], rows) if path_and_layer else None


def permute_head(model: nn.Module, change: HeadChange) -> None:
    """Put the rows of the head's output layer into the order of the labels, or initialize the layer anew.

    A fresh layer is initialized as in transformers: normal with the model's `initializer_range`, bias zero.
    """
    layer = model.get_submodule(change.layer)
    assert isinstance(layer, nn.Linear)  # `output_layer` returned its path
    with torch.no_grad():
        if change.rows is None:
            nn.init.normal_(layer.weight, std=config_of(model).initializer_range)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            return
        rows = list(change.rows)
        layer.weight.copy_(layer.weight[rows].clone())
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[rows].clone())


def _with_head_rows(base: BaseModel, rows: tuple[int, ...] | None) -> BaseModel:
    """Return the base with its head's rows in this order; None gives a fresh output layer."""
    outputs = base.model.config.num_labels
    assert outputs is not None  # `load_base` sets it
    if rows == tuple(range(outputs)):
        return base
    path_and_layer = output_layer(base.model, outputs)
    if path_and_layer is None:
        raise ModelError(
            f"The head of {base.source.name!r} has no linear output layer, so its labels cannot be put into "
            "another order; choose base_head by_order."
        )
    change = HeadChange(path_and_layer[0], rows)
    permute_head(base.model, change)
    untrained = base.untrained if rows is not None else tuple(sorted({*base.untrained, change.layer}))
    return replace(base, untrained=untrained, head_change=change)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout rate of a model: of its `Dropout` modules, and of float attributes named so."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, attribute in vars(module).items():
            if "dropout" in name and isinstance(attribute, float):
                setattr(module, name, rate)


def _quantization_kwargs(name: str, source: Source, bits: int) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantize all but the head and the pooler.

    These two stay in full precision because a checkpoint may lack them.
    """
    if bits == FULL:
        return {}
    config = _read_config(name, source)
    refuse_quantized(config, name)
    return quantization_kwargs(bits, full_precision_modules(meta_model(config, 2)))


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder contains a vocabulary."""
    return any(any(folder.glob(pattern)) for pattern in _VOCABULARY_FILES)


def refuse_quantized(config: Any, name: str) -> None:
    """Raise ModelError if a base model's configuration says that its weights are quantized."""
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        kind = dict(quantization).get("quant_method", "quantized")
        raise ModelError(
            f"The base model {name!r} is quantized ({kind}), and an adapter merged into rounded weights "
            "is not the one that was trained; merge into the full-precision model it was made from."
        )


def _read_config(name: str, source: Source) -> Any:
    try:
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The config.json of {name!r} cannot be used: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return reason_of(error).splitlines()[0]


def _untrained(report: dict[str, Iterable]) -> tuple[str, ...]:
    """Return the modules of the loader's missing and mismatched keys."""
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    return tuple(sorted({key.rsplit(".", 1)[0] for key in [*report["missing_keys"], *mismatched]}))
