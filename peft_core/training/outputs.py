"""Write a training's outputs: the result with the test rows (`evaluation/`) and the adapter (`adapter/`)."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from safetensors.torch import save_file

from peft_core.counts import count_model
from peft_core.files.atomic import write_json
from peft_core.inference.classifier import CLASSIFIER_FILE, Classifier
from peft_core.merging.certificate import sha256_of_adapter
from peft_core.methods.adapters import trained_state
from peft_core.runs import RunResult
from peft_core.runs.run import RESULT_FILE
from peft_core.training.reporting import log_result
from peft_core.training.results import measure
from peft_core.training.setup import TrainingSetup
from peft_core.training.stopping import StopCheck


def evaluate_and_save(setup: TrainingSetup, trained: Mapping[str, Any], stop: StopCheck) -> None:
    """Evaluate the model on all test rows, and save the result and the adapter.

    The result names the adapter's hash and is written after it, so that it never describes another adapter.

    Args:
        setup: The run.
        trained: The fields of the result that the training determined.
        stop: Checked during the evaluation.

    Raises:
        Stopped: During the evaluation; neither result nor adapter is written.
    """
    run = setup.run
    run.update(stage="evaluating")
    with run.new_folder(run.folder / "evaluation") as staging:
        with stop.between_layers(setup.model):
            result = evaluate(staging, setup, stop)
        result |= {**trained, "data": setup.data.record}
        log_result(run, result)
        run.update(stage="saving")
        save_adapter(setup)
        proofs = {"adapter_sha256": sha256_of_adapter(run), "metrics_check": run.cached.metrics_check}
        write_json(staging / RESULT_FILE, RunResult.from_dict({**result, **proofs}).to_dict())


def evaluate(folder: Path, setup: TrainingSetup, stop: StopCheck) -> dict[str, Any]:
    """Return the result on all test rows, whose outputs are written into the folder, and its provenance.

    Raises `Stopped` once the user asks for it.
    """
    base, length = setup.base, setup.config.max_length
    return {
        **measure(folder, setup.model, base.tokenizer, setup.data, length, setup.loss, on_progress=stop),
        "parameters": count_model(setup.model).to_dict(),
        "head_is_fresh": base.head_is_fresh,
        "untrained": list(base.untrained),
        "base_revision": base.source.revision,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, datasets)},
    }


def save_adapter(setup: TrainingSetup) -> None:
    """Write `adapter/`: the adapter with all trained modules, the tokenizer, and `classifier.json`."""
    base, data, model = setup.base, setup.data, setup.model
    classifier = Classifier(
        labels=tuple(model.config.id2label.values()),
        max_length=setup.config.max_length,
        base_model_name_or_path=base.source.name,
        base_revision=base.source.revision,
        untrained=base.untrained,
        head_is_fresh=base.head_is_fresh,
        problem_type=data.problem_type,
        text_pair="text_pair" in data.train.column_names,
        head_change=base.head_change,
    )
    with setup.run.new_folder(setup.run.adapter) as staging:
        if isinstance(model, peft.PeftModel):
            model.save_pretrained(str(staging), save_embedding_layers=False)
        else:
            save_file(trained_state(model), staging / "adapter_model.safetensors", metadata={"format": "pt"})
        base.tokenizer.save_pretrained(staging)
        (staging / "README.md").unlink(missing_ok=True)  # PEFT's template of a model card, not filled in
        write_json(staging / CLASSIFIER_FILE, classifier.to_dict())
