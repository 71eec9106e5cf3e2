"""Load a run's base model, its adapter on that base, or its merged model."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from peft_core.errors import MergeError, ModelError, RunError
from peft_core.inference.classifier import Classifier
from peft_core.merging.certificate import verified_certificate
from peft_core.methods.adapters import merged_model
from peft_core.methods.registry import METHODS, bits_of
from peft_core.models.encoder import BaseModel, has_tokenizer, load_base, permute_head
from peft_core.models.heads import BY_ORDER
from peft_core.models.quantization import FULL
from peft_core.models.sources import hub_commit
from peft_core.runs import Run

BASE, ADAPTER, MERGED = VARIANTS = ("base", "adapter", "merged")
_DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


def load_variant(run: Run, classifier: Classifier, variant: str) -> tuple[Any, Any]:
    """Return a model and its tokenizer; RunError, ModelError or HubError for lost or changed files."""
    if variant == MERGED:
        verified_certificate(run)
        return _load_merged(run)
    if variant == BASE:
        base = load_adapter_base(run, classifier)
        return base.model, base.tokenizer
    base = load_adapter_base(run, classifier, bits_of(run.config().to_dict()))  # as it was trained
    return load_adapter(run, base), base.tokenizer


def load_adapter_base(run: Run, classifier: Classifier, bits: int = FULL) -> BaseModel:
    """Load the base model that the adapter was trained on, in 32, 8 or 4 bits.

    Raises:
        ModelError: If the base model has changed since; the message has both revisions.
    """
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
            f"(it was {revision}, now {base.source.revision}); restore that version or train again."
        )
    return base


def load_adapter(run: Run, base: BaseModel) -> nn.Module:
    """Load the run's adapter (or trained weights) into its base; RunError for lost or damaged files."""
    run.verify(run.adapter)
    try:
        if METHODS[run.config().method].peft_config is None:
            return _load_weights(base.model, run.adapter / "adapter_model.safetensors")
        if not (run.adapter / "adapter_config.json").is_file():
            raise OSError("it has no adapter_config.json")  # else PEFT would ask the Hub for it
        return PeftModel.from_pretrained(base.model, run.adapter)
    except _DAMAGED as error:
        raise RunError(
            f"The adapter of {run.run_id!r} has missing or damaged files; train it again."
        ) from error


def merged_weights(run: Run, model: nn.Module) -> PreTrainedModel:
    """Return the model with the adapter merged; MergeError if a weight would be NaN or infinite."""
    try:
        merged = merged_model(model).eval()
    except ValueError as error:
        raise MergeError(f"The adapter of {run.run_id!r} cannot be merged: {error}.") from error
    assert isinstance(merged, PreTrainedModel)  # unwrapped, as AutoModel loaded it
    return merged


def _load_weights(model: nn.Module, path: Path) -> nn.Module:
    state_dict = load_file(path)
    unknown = model.load_state_dict(state_dict, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"it has no {unknown[0]}")
    return model


def _load_merged(run: Run) -> tuple[Any, Any]:
    try:
        if not has_tokenizer(run.merged):
            raise OSError("it has no tokenizer")
        model = AutoModelForSequenceClassification.from_pretrained(
            run.merged, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
        return model, AutoTokenizer.from_pretrained(run.merged, trust_remote_code=False)
    except _DAMAGED as error:
        raise RunError(
            f"The merged model of {run.run_id!r} has missing or damaged files; merge it again."
        ) from error
