"""Facts that a script needs beside the settings: of a trained run, or of settings without a run."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.inference.classifier import Classifier
from peft_core.methods.registry import METHODS
from peft_core.models.heads import HeadChange
from peft_core.models.sources import hub_commit
from peft_core.problem_types import SINGLE
from peft_core.runs import KILLED, Run, RunResult
from peft_core.training.schedule import total_steps

_PACKAGES = ("torch", "transformers", "peft", "datasets")
_VERSION = re.compile(r"\d+(\.\w+)*", re.ASCII)


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model; None if the script has to determine them itself.

    Attributes:
        labels: label names in the order of the head's outputs.
        problem_type: problem type of the head.
        revision: commit of the base model on the Hub.
        untrained: modules whose weights the checkpoint lacks.
        head_is_fresh: whether the head starts at random.
        head_change: how the base model's head is adapted to the labels.
        steps: optimizer steps of the whole training; set for a trained run only.
        kept_step: the step whose weights were kept, or None if that is the last one.
        target_modules: target modules of a run, as module names of the model.
        feedforward: those of them in an MLP, which IA3 scales at their input.
    """

    labels: tuple[str, ...] = ()
    problem_type: str = SINGLE
    revision: str | None = None
    untrained: tuple[str, ...] | None = None
    head_is_fresh: bool = True
    head_change: HeadChange | None = None
    steps: int | None = None
    kept_step: int | None = None
    target_modules: tuple[str, ...] | None = None
    feedforward: tuple[str, ...] = ()

    @property
    def is_from_run(self) -> bool:
        """Whether these are facts of a trained run."""
        return self.steps is not None


@dataclass(frozen=True)
class RunFacts:
    """Facts about a trained run.

    Attributes:
        model: facts about its model.
        record: the data record of `result.json`.
        text_pair: whether it classifies pairs of texts.
        versions: versions of the packages by name.
        threads: CPU threads of the training.
        stopped: whether it was stopped before its last step.
    """

    model: ModelFacts
    record: Mapping[str, Any]
    text_pair: bool
    versions: Mapping[str, str]
    threads: int
    stopped: bool = False

    @classmethod
    def read(cls, run: Run) -> "RunFacts":
        """Read a run's folder; RunError if it has no adapter or a required fact is missing."""
        config, classifier = run.config(), Classifier.read(run)
        try:
            result = run.result()
            used = {part: int(result["data"]["used"][part]) for part in ("train", "validation", "test")}
            record = {**result["data"], "used": used}
            versions = {name: _version(result["versions"][name]) for name in _PACKAGES}
            threads = int(result["machine"]["threads"])
            model = _model_facts(run, config, classifier, used["train"])
            model = replace(model, kept_step=_kept_step(result, model.steps))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"The run {run.run_id!r} does not record all that a script needs; train it again."
            ) from error
        stopped = run.state().status == KILLED
        return cls(model, record, bool(classifier.text_pair), versions, threads, stopped)

    def rows(self, part: str) -> int:
        """Return the number of rows of train, validation or test that the run used."""
        return self.record["used"][part]


def _model_facts(run: Run, config: TrainConfig, classifier: Classifier, rows: int) -> ModelFacts:
    adapter_config: dict[str, Any] = {}
    if METHODS[config.method].peft_config:
        adapter_config = dict(json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8")))
    return ModelFacts(
        labels=classifier.labels,
        problem_type=classifier.problem_type,
        revision=hub_commit(classifier.base_revision),
        untrained=classifier.untrained,
        head_is_fresh=classifier.head_is_fresh,
        head_change=classifier.head_change,
        steps=total_steps(config, rows),
        target_modules=_sorted_names(adapter_config.get("target_modules")),
        feedforward=_sorted_names(adapter_config.get("feedforward_modules")),
    )


def _kept_step(result: RunResult, steps: int | None) -> int | None:
    """Return the kept step; None if several processes took fewer steps than the script will."""
    kept_step = result.get("kept")
    return int(kept_step["step"]) if kept_step and int(kept_step["max_steps"]) == steps else None


def _sorted_names(names: list[str] | None) -> tuple[str, ...]:
    """Sort module names, which PEFT stores as sets and saves in arbitrary order."""
    return tuple(sorted(map(str, names or ())))


def _version(text: str) -> str:
    """Return a version without its local build tag (`+cpu`), which a package index may not have."""
    match = _VERSION.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a version")
    return match.group()
