"""What a script must know beside the settings: of a run that was trained, or of a form before any is."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from peft_core.config import TrainConfig
from peft_core.errors import RunError
from peft_core.heads import HeadChange
from peft_core.inference.classifier import Classifier
from peft_core.methods import METHODS
from peft_core.problems import SINGLE
from peft_core.runs import KILLED, Run
from peft_core.schedule import total_steps
from peft_core.sources import hub_commit

_PACKAGES = ("torch", "transformers", "peft", "datasets")
_VERSION = re.compile(r"\d+(\.\w+)*", re.ASCII)


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the model to be built; None where the script must find it out.

    `target_modules` are those of a run, in names that the model has; `feedforward` those of them that lie in
    an MLP, which IA3 scales at their input; `steps` the optimizer steps of the whole training, of which the
    weights of `kept_step` were kept (None for a run of earlier versions: the last one).
    """

    labels: tuple[str, ...] | None = None
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
    def of_a_run(self) -> bool:
        return self.steps is not None


@dataclass(frozen=True)
class RunFacts:
    """`record` is the run's word on its data (`result.json`), `versions` are those of the packages, `threads`
    those of the processor; `stopped` tells that the run ended before its last step."""

    model: ModelFacts
    record: Mapping[str, Any]
    text_pair: bool
    versions: Mapping[str, str]
    threads: int
    stopped: bool = False

    @classmethod
    def read(cls, run: Run) -> "RunFacts":
        """From a run's folder; RunError if it has no adapter, or has lost a part that is needed."""
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
                f"The run {run.run_id!r} does not say all that a script needs; train it again."
            ) from error
        stopped = run.state().status == KILLED
        return cls(model, record, bool(classifier.text_pair), versions, threads, stopped)

    def rows(self, part: str) -> int:
        """The rows of train, validation or test that the run used."""
        return self.record["used"][part]


def _model_facts(run: Run, config: TrainConfig, classifier: Classifier, rows: int) -> ModelFacts:
    peft: dict[str, Any] = {}
    if METHODS[config.method].peft_config:
        peft = dict(json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8")))
    return ModelFacts(
        labels=classifier.labels,
        problem_type=classifier.problem_type,
        revision=hub_commit(classifier.base_revision),
        untrained=classifier.untrained,
        head_is_fresh=classifier.head_is_fresh,
        head_change=classifier.head_change,
        steps=total_steps(config, rows),
        target_modules=_sorted_names(peft.get("target_modules")),
        feedforward=_sorted_names(peft.get("feedforward_modules")),
    )


def _kept_step(result: Mapping[str, Any], steps: int | None) -> int | None:
    """The step that was kept; None where several processes took fewer steps than a script will."""
    kept = result.get("kept")
    return int(kept["step"]) if kept and int(kept["max_steps"]) == steps else None


def _sorted_names(names: list[str] | None) -> tuple[str, ...]:
    """PEFT keeps these in sets, which it saves in no order."""
    return tuple(sorted(map(str, names or ())))


def _version(text: str) -> str:
    """A version as pip takes it, without the build that a package index may not have (2.13.0+cpu)."""
    found = _VERSION.match(text)
    if found is None:
        raise ValueError(f"{text!r} is no version")
    return found.group()
