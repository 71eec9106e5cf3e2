"""A run's base model, its adapter on that base, and its merged model, from their files."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peft_core.adapters import merged_model
from peft_core.certificate import verified_certificate
from peft_core.encoder import BaseModel, has_tokenizer, load_base, permute_head
from peft_core.errors import MergeError, ModelError, RunError
from peft_core.heads import BY_ORDER
from peft_core.inference.classifier import Classifier
from peft_core.methods import METHODS, bits_of
from peft_core.quantise import FULL
from peft_core.runs import Run
from peft_core.sources import hub_commit

BASE, ADAPTER, MERGED = VARIANTS = ("base", "adapter", "merged")
_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


def load_variant(run: Run, classifier: Classifier, variant: str) -> tuple[Any, Any]:
    """A model and its tokenizer; RunError, ModelError or HubError for files that are lost or changed."""
    if variant == MERGED:
        verified_certificate(run)
        return _load_merged(run)
    if variant == BASE:
        base = load_adapter_base(run, classifier)
        return base.model, base.tokenizer
    base = load_adapter_base(run, classifier, bits_of(run.config().to_dict()))  # as it was trained
    return load_adapter(run, base), base.tokenizer


def load_adapter_base(run: Run, classifier: Classifier, bits: int = FULL) -> BaseModel:
    """The very base model of the adapter; ModelError, naming both hashes, if it has changed."""
    revision = classifier.base_revision
    base = load_base(
        classifier.base_model_name_or_path,
        hub_commit(revision),
        classifier.labels,
        problem_type=classifier.problem_type,
        bits=bits,
        base_head=BY_ORDER,
    )
    if classifier.head_change and classifier.head_change.rows and not base.head_is_fresh:
        permute_head(base.model, classifier.head_change)
    if base.source.revision != revision:
        raise ModelError(
            f"The base model {base.source.name!r} has changed since {run.run_id!r} was trained "
            f"(it was {revision}, now {base.source.revision}); put the old one back or train again."
        )
    return base


def load_adapter(run: Run, base: BaseModel) -> nn.Module:
    """The run's adapter (or the weights it trained) on its base; RunError if files are lost or damaged."""
    run.verify(run.adapter)
    try:
        if METHODS[run.config().method].peft_config is None:
            return _load_weights(base.model, run.adapter / "adapter_model.safetensors")
        if not (run.adapter / "adapter_config.json").is_file():
            raise OSError("it holds no adapter_config.json")  # else PEFT asks the Hub for one
        return PeftModel.from_pretrained(base.model, run.adapter)
    except _DAMAGED as error:
        raise RunError(f"The adapter of {run.run_id!r} has lost or damaged files; train it again.") from error


def merged_weights(run: Run, model: nn.Module) -> nn.Module:
    """The model with the adapter in its weights; MergeError if one of them would not be a number."""
    try:
        return merged_model(model).eval()
    except ValueError as error:
        raise MergeError(f"The adapter of {run.run_id!r} cannot be merged: {error}.") from error


def _load_weights(model: nn.Module, path: Path) -> nn.Module:
    trained = load_file(path)
    unknown = model.load_state_dict(trained, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"it has no {unknown[0]}")
    return model


def _load_merged(run: Run) -> tuple[Any, Any]:
    try:
        if not has_tokenizer(run.merged):
            raise OSError("it holds no tokenizer")
        model = AutoModelForSequenceClassification.from_pretrained(
            run.merged, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
        return model, AutoTokenizer.from_pretrained(run.merged, trust_remote_code=False)
    except _DAMAGED as error:
        raise RunError(f"The merged model of {run.run_id!r} has lost files; merge it again.") from error
