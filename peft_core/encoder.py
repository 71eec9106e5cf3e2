"""The base model: its shape, its length, its head, and the parts that start untrained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from peft_core.config import TrainConfig
from peft_core.errors import ModelError, reason_of
from peft_core.heads import BY_NAME, HeadChange, are_generic, head_labels, head_rows
from peft_core.modules import HEAD_NAMES, output_layer, whole_modules
from peft_core.presets import MODELS
from peft_core.quantise import FULL, compute_in_float32, quantisation_arguments
from peft_core.sources import Source, is_local, model_source

_VOCABULARY_FILES = ("tokenizer.json", "vocab*", "*.model")  # without any, transformers makes an empty one
_OFFSET_POSITIONS = (  # families that number positions from the padding's id on
    "roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "data2vec-text",
    "longformer", "mpnet", "xmod", "ibert", "luke",
)  # fmt: skip


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model in full precision, its tokenizer, and the names of what the checkpoint lacks."""

    model: nn.Module
    tokenizer: Any
    untrained: tuple[str, ...]
    source: Source
    head_change: HeadChange | None = None

    @property
    def head_is_fresh(self) -> bool:
        """Whether the classification head started untrained."""
        return any(name.split(".")[0] in HEAD_NAMES for name in self.untrained)


def model_config(name: str, revision: str | None = None) -> Any:
    """The model's configuration; a preset's needs no network, any other comes from its `config.json`.

    Raises ModelError for a model that is no encoder with a classifier.
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
            f"{name!r} is a {kind} model, which is no encoder; choose one like BERT, RoBERTa or ELECTRA."
        )
    return config


def local_config(name: str, revision: str | None = None) -> Any | None:
    """As `model_config`, but None for a model whose configuration is not on this machine yet."""
    if name not in MODELS and not is_local(name):
        try:
            return AutoConfig.from_pretrained(
                name, revision=revision, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError):
            return None
    return model_config(name, revision)


def skeleton(config: Any, num_labels: int) -> nn.Module:
    """The classifier on the meta device: every shape, no weights."""
    config.num_labels = num_labels
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def max_input_length(config: Any) -> int:
    """The most tokens that the model's position embeddings hold."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    if config.model_type in _OFFSET_POSITIONS:
        return positions - (config.pad_token_id or 0) - 1
    return positions


def check_max_length(config: Any, max_length: int, virtual_tokens: int = 0) -> None:
    """Raise ModelError if texts, with a method's own tokens before them, would be longer than is read."""
    most = max_input_length(config)
    if max_length + virtual_tokens > most:
        beside = f" beside {virtual_tokens} virtual tokens" if virtual_tokens else ""
        raise ModelError(
            f"max_length is {max_length}; this model reads at most {most - virtual_tokens} tokens{beside}."
        )


def load_base(
    name: str,
    revision: str | None,
    label_names: Sequence[str],
    *,
    named: bool = True,
    problem_type: str = "single_label_classification",
    bits: int = FULL,
    base_head: str = BY_NAME,
) -> BaseModel:
    """The base model with a head for these labels; a head of another size is replaced by a fresh one.

    A head of the right size is kept, its rows in the order of the labels: by name, by order, or replaced by a
    `fresh` one, as `base_head` says. With `named` False (the data holds bare numbers) a kept head keeps its
    own label names. A regression has one output and no labels. With `bits` below 32 the encoder's matrices
    are quantised. Raises ModelError (also where the names of head and data do not match) or HubError.
    """
    source = model_source(name, revision)
    quantised = _quantised(name, source, bits)
    label_names = label_names or ("value",)  # the one output of a regression
    if not has_tokenizer(source.folder):
        raise ModelError(f"{name!r} cannot be loaded: it holds no tokenizer; save one beside the model.")
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.folder,
            num_labels=len(label_names),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            **quantised,
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
        if rows and not named and not are_generic(head):
            names = tuple(head[row] for row in rows)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {label: i for i, label in enumerate(names)}
    model.config.problem_type = problem_type
    return base


def plan_head(config: TrainConfig, labels: Sequence[str], problem_type: str) -> HeadChange | None:
    """What will be changed of the head that the base model declares; None without one, or where it is kept.

    Nothing but the configuration is read. Raises ModelError as `load_base`, or for a model that is none.
    """
    shape = model_config(config.model_name_or_path, config.revision)
    head = head_labels(shape)
    if head is None or len(head) != (len(labels) or 1):
        return None
    rows = head_rows(labels, head, problem_type, config.base_head, config.model_name_or_path)
    if rows == tuple(range(len(head))):
        return None
    found = output_layer(skeleton(shape, len(head)), len(head))
    return HeadChange(found[0], rows) if found else None


def permute_head(model: nn.Module, change: HeadChange) -> None:
    """Put the rows of a head's output layer into the order of the labels, or draw the layer anew.

    A fresh layer is drawn as transformers does: normal with the model's initializer_range, bias zero.
    """
    layer = model.get_submodule(change.layer)
    with torch.no_grad():
        if change.rows is None:
            nn.init.normal_(layer.weight, std=model.config.initializer_range)
        else:
            layer.weight.copy_(layer.weight[list(change.rows)].clone())
        if layer.bias is not None and change.rows is None:
            nn.init.zeros_(layer.bias)
        elif layer.bias is not None:
            layer.bias.copy_(layer.bias[list(change.rows)].clone())


def _with_head_rows(base: BaseModel, rows: tuple[int, ...] | None) -> BaseModel:
    """The base with its head's rows in this order, or with a fresh output layer for None."""
    outputs = base.model.config.num_labels
    if rows == tuple(range(outputs)):
        return base
    found = output_layer(base.model, outputs)
    if found is None:
        raise ModelError(
            f"The head of {base.source.name!r} has no linear output layer, so its labels cannot be put into "
            "another order; choose base_head by_order."
        )
    change = HeadChange(found[0], rows)
    permute_head(base.model, change)
    untrained = base.untrained if rows is not None else tuple(sorted({*base.untrained, found[0]}))
    return replace(base, untrained=untrained, head_change=change)


def set_dropout(model: nn.Module, share: float) -> None:
    """Have a model drop this share of its own values in training, wherever it drops any."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, share)


def _quantised(name: str, source: Source, bits: int) -> dict[str, Any]:
    """Loading arguments that leave in full precision what a checkpoint may lack: the head and the pooler."""
    if bits == FULL:
        return {}
    config = _read_config(name, source)
    refuse_quantised(config, name)
    return quantisation_arguments(bits, whole_modules(skeleton(config, 2)))


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder holds a vocabulary."""
    return any(any(folder.glob(pattern)) for pattern in _VOCABULARY_FILES)


def refuse_quantised(config: Any, name: str) -> None:
    """Raise ModelError if a base's configuration says that its weights are quantised."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation:
        kind = dict(quantisation).get("quant_method", "quantised")
        raise ModelError(
            f"The base model {name!r} is quantised ({kind}), and an adapter merged into rounded weights "
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
    """The modules behind the loader's missing and mismatched keys, without their parameter names."""
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    return tuple(sorted({key.rsplit(".", 1)[0] for key in [*report["missing_keys"], *mismatched]}))
