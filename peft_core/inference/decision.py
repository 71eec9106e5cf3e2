"""Decision rules turn logits into predictions: temperature, thresholds and abstention (`decision.json`).

The rule is saved in `adapter/` and copied into the folders derived from the adapter (`merged/`, `onnx/`). A
folder may be created while a rule is saved. `DecisionRule.save` writes `adapter/` first and updates the other
folders afterwards; code that creates a folder calls `update_decision` after renaming it into place. If the
folder was in place when `save` looked for it, `save` updates it; otherwise the rule was in `adapter/` before
the rename, and the creator reads it there. Two rules saved at the same time end up the same in all folders,
because each change of a folder is followed by a comparison with `adapter/`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peft_core.errors import ConfigError, DamagedError, RunError
from peft_core.files.atomic import atomic_file, open_regular, write_json
from peft_core.files.manifests import replace_file
from peft_core.problem_types import MULTI, REGRESSION, SINGLE, THRESHOLD, scores
from peft_core.runs import Run

DECISION_FILE = "decision.json"


@dataclass(frozen=True)
class DecisionRule:
    """How logits become predictions; the defaults are the default rule. A regression uses none of it.

    Attributes:
        temperature: Divides the logits before they become probabilities.
        thresholds: One per label, between 0 and 1; empty for none. Single label: the label with the largest
            ratio of probability to threshold is predicted (for two labels whose thresholds sum to 1: the
            second from its threshold on). Multi-label: each label from its threshold on.
        abstain_below: Confidence below which there is no answer.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    abstain_below: float = 0.0

    @classmethod
    def read(cls, run: Run) -> "DecisionRule":
        """Read the rule saved with a run, or return the default rule; RunError for a damaged file."""
        if run.adapter.is_dir():
            run.verify(run.adapter)
        path = run.adapter / DECISION_FILE
        if not path.is_file():
            return cls()
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls.from_dict(fields, tuple(fields["thresholds"]))
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise RunError(
                f"The {DECISION_FILE} of {run.run_id!r} is damaged; choose thresholds and temperature again."
            ) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], labels: Sequence[str]) -> "DecisionRule":
        """Check and convert the values of `to_dict`; ConfigError for an unknown label or a bad number."""
        thresholds = values.get("thresholds") or {}
        if thresholds and set(thresholds) != set(labels):
            raise ConfigError(
                f"The thresholds are for {', '.join(map(repr, thresholds))}; give one for each of the labels "
                f"{', '.join(map(repr, labels))}, or none."
            )
        ordered = [(label, thresholds[label]) for label in labels] if thresholds else []
        return cls(
            temperature=_number("temperature", values.get("temperature", 1.0), 0.01, 100.0),
            thresholds=tuple(_number(f"The threshold of {name!r}", t, 0.001, 0.999) for name, t in ordered),
            abstain_below=_number("abstain_below", values.get("abstain_below", 0.0), 0.0, 1.0),
        )

    @property
    def is_plain(self) -> bool:
        """Whether this is the default rule."""
        return self == PLAIN

    def save(self, run: Run, labels: tuple[str, ...]) -> None:
        """Write the rule into the adapter, then into the merged and the ONNX model's folders if they exist.

        Raises:
            DamagedError: If a file of these folders is damaged; nothing is written then.
        """
        for folder in (run.adapter, run.merged, run.onnx):
            if folder.is_dir():
                run.verify(folder)
        _replace(run, run.adapter, lambda path: self.write(path.parent, labels))
        for folder in (run.merged, run.onnx):
            update_decision(run, folder)

    def write(self, folder: Path, labels: tuple[str, ...]) -> None:
        """Write `decision.json` into a folder, or remove it for the default rule."""
        if self.is_plain:
            (folder / DECISION_FILE).unlink(missing_ok=True)
        else:
            write_json(folder / DECISION_FILE, self.to_dict(labels))

    def to_dict(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Return JSON types, with the thresholds by label (empty for none)."""
        thresholds = dict(zip(labels, self.thresholds, strict=True)) if self.thresholds else {}
        return {**asdict(self), "thresholds": thresholds}

    def probabilities(self, logits: np.ndarray, problem_type: str) -> np.ndarray:
        """Return calibrated probabilities, float64 (rows, labels); a regression's numbers as they are."""
        raw = np.asarray(logits, dtype=np.float64)
        return scores(raw if problem_type == REGRESSION else raw / self.temperature, problem_type)

    def decide(self, logits: np.ndarray, problem_type: str) -> np.ndarray:
        """Return predictions as `problem_types.decide` does, by this rule; abstention is up to `abstains`."""
        probabilities = self.probabilities(logits, problem_type)
        if problem_type == REGRESSION:
            return probabilities[:, 0]
        if problem_type == MULTI:
            return (probabilities >= (self.thresholds or THRESHOLD)).astype(np.int64)
        return (probabilities / (self.thresholds or 1.0)).argmax(-1)

    def confidence(self, logits: np.ndarray, problem_type: str) -> np.ndarray:
        """Return the probability of each row's prediction, from 0 to 1 (rows,).

        Multi-label: the probability of the least certain label's presence or absence. Regression: 1.
        """
        probabilities = self.probabilities(logits, problem_type)
        if problem_type == SINGLE:
            predicted = self.decide(logits, problem_type)
            return np.take_along_axis(probabilities, predicted[:, None], -1)[:, 0]
        if problem_type == MULTI:
            predicted = self.decide(logits, problem_type)
            return np.where(predicted == 1, probabilities, 1 - probabilities).min(-1)
        return np.ones(len(probabilities))

    def abstains(self, logits: np.ndarray, problem_type: str) -> np.ndarray:
        """Return True (rows,) where the confidence is too low for an answer."""
        return self.confidence(logits, problem_type) < self.abstain_below


PLAIN = DecisionRule()


def update_decision(run: Run, folder: Path) -> None:
    """Copy the adapter's `decision.json` into a folder derived from it, until the two are equal.

    Raises:
        DamagedError: If a file of the folder or of the adapter is damaged.
    """
    while folder.is_dir():
        run.verify(run.adapter)
        content = _content(run.adapter)
        if _content(folder) == content:
            return
        try:
            _replace(run, folder, partial(_write_content, content))
        except DamagedError:
            if folder.is_dir():
                raise  # otherwise the folder was removed meanwhile, as a new merge does


def _content(folder: Path) -> bytes | None:
    """Return the bytes of a folder's `decision.json`; None for the default rule, which has no file."""
    path = folder / DECISION_FILE
    if not path.is_file():
        return None
    with open_regular(path) as file:
        return file.read()


def _write_content(content: bytes | None, path: Path) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as staging:
        staging.write_bytes(content)


def _replace(run: Run, folder: Path, write: Callable[[Path], None]) -> None:
    """Write or remove `decision.json` and update the manifest; schema version 0 has no verified manifest."""
    if run.is_version_0:
        write(folder / DECISION_FILE)
    else:
        replace_file(folder, DECISION_FILE, write)


def _number(name: str, number: Any, lower: float, upper: float) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not lower <= number <= upper:
        raise ConfigError(f"{name} is {number!r}; it must be from {lower:g} to {upper:g}.")
    return float(number)
