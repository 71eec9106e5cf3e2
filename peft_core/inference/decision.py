"""How a model's raw outputs become an answer: temperature, thresholds and abstaining (`decision.json`).

The rule is saved in `adapter/`, and copied into the folders that are made of the adapter. A folder may be
made while a rule is saved. `Decision.save` writes `adapter/` first and looks for other folders afterwards;
whoever makes a folder calls `update_decision` once it has its name. If the folder had its name when `save`
looked, `save` updates it; otherwise the rule was in `adapter/` before the folder got its name, and its maker
finds it there. Two rules saved at once end alike in all folders, as each change of a folder is followed by a
comparison with `adapter/`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peft_core.errors import ConfigError, DamagedError, RunError
from peft_core.files import atomic_file, open_regular, write_json
from peft_core.manifests import replace_file
from peft_core.problems import MULTI, REGRESSION, SINGLE, THRESHOLD, scores
from peft_core.runs import Run

DECISION_FILE = "decision.json"


@dataclass(frozen=True)
class Decision:
    """What a person chose on validation rows; the defaults are the plain rule.

    `temperature` divides the raw outputs before they become probabilities. With `thresholds` (one a label,
    between 0 and 1) a text of one label gets the one whose probability is the largest share of its threshold
    (for two labels whose thresholds sum to 1: the second from its threshold on), a text of several gets each
    from its threshold on. Below `abstain_below` of confidence there is no answer. A number has none of these.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    abstain_below: float = 0.0

    @classmethod
    def read(cls, run: Run) -> "Decision":
        """The choice saved with a run, or the plain rule; RunError for a damaged file."""
        if run.adapter.is_dir():
            run.verify(run.adapter)
        path = run.adapter / DECISION_FILE
        if not path.is_file():
            return cls()
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls.of(held, tuple(held["thresholds"]))
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise RunError(
                f"The {DECISION_FILE} of {run.run_id!r} is damaged; choose thresholds and temperature again."
            ) from error

    @classmethod
    def of(cls, values: Mapping[str, Any], labels: Sequence[str]) -> "Decision":
        """Checked values, as `to_dict` gives them; ConfigError for one that is unknown or out of bounds."""
        given = values.get("thresholds") or {}
        if given and set(given) != set(labels):
            raise ConfigError(
                f"The thresholds are of {', '.join(map(repr, given))}; give one for each of the labels "
                f"{', '.join(map(repr, labels))}, or none."
            )
        ordered = [(label, given[label]) for label in labels] if given else []
        return cls(
            temperature=_number("temperature", values.get("temperature", 1.0), 0.01, 100.0),
            thresholds=tuple(_number(f"The threshold of {name!r}", t, 0.001, 0.999) for name, t in ordered),
            abstain_below=_number("abstain_below", values.get("abstain_below", 0.0), 0.0, 1.0),
        )

    @property
    def is_plain(self) -> bool:
        return self == PLAIN

    def save(self, run: Run, labels: tuple[str, ...]) -> None:
        """Write it into the adapter, and then beside the merged and the ONNX model where they are.

        Raises DamagedError, before anything is written, if a file of these folders is damaged.
        """
        for folder in (run.adapter, run.merged, run.onnx):
            if folder.is_dir():
                run.verify(folder)
        _replace(run, run.adapter, lambda path: self.write(path.parent, labels))
        for folder in (run.merged, run.onnx):
            update_decision(run, folder)

    def write(self, folder: Path, labels: tuple[str, ...]) -> None:
        """Write `decision.json` into a folder, or remove it for the plain rule."""
        if self.is_plain:
            (folder / DECISION_FILE).unlink(missing_ok=True)
        else:
            write_json(folder / DECISION_FILE, self.to_dict(labels))

    def to_dict(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """As JSON types, the thresholds by label (empty for the plain rule)."""
        named = dict(zip(labels, self.thresholds, strict=True)) if self.thresholds else {}
        return {**asdict(self), "thresholds": named}

    def probabilities(self, logits: np.ndarray, problem_type: str) -> np.ndarray:
        """Calibrated probabilities (rows, labels), float64; of a number the numbers themselves."""
        raw = np.asarray(logits, dtype=np.float64)
        return scores(raw if problem_type == REGRESSION else raw / self.temperature, problem_type)

    def decide(self, logits: np.ndarray, problem_type: str) -> np.ndarray:
        """As `problems.decide`, by this rule; abstaining is told by `abstains`."""
        found = self.probabilities(logits, problem_type)
        if problem_type == REGRESSION:
            return found[:, 0]
        if problem_type == MULTI:
            return (found >= (self.thresholds or THRESHOLD)).astype(np.int64)
        return (found / (self.thresholds or 1.0)).argmax(-1)

    def confidence(self, logits: np.ndarray, problem_type: str) -> np.ndarray:
        """From 0 to 1 (rows,): of the label given; of several, of the yes or no that is least sure."""
        found = self.probabilities(logits, problem_type)
        if problem_type == SINGLE:
            return np.take_along_axis(found, self.decide(logits, problem_type)[:, None], -1)[:, 0]
        if problem_type == MULTI:
            given = self.decide(logits, problem_type)
            return np.where(given == 1, found, 1 - found).min(-1)
        return np.ones(len(found))

    def abstains(self, logits: np.ndarray, problem_type: str) -> np.ndarray:
        """True (rows,) where the confidence is too low for an answer."""
        return self.confidence(logits, problem_type) < self.abstain_below


PLAIN = Decision()


def update_decision(run: Run, folder: Path) -> None:
    """Make the `decision.json` of a folder that was made of the adapter the one that is saved with it.

    Raises DamagedError if a file of the folder or of the adapter is damaged.
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
                raise  # otherwise the folder was removed meanwhile, as a merge does with an earlier one


def _content(folder: Path) -> bytes | None:
    """The bytes of a folder's `decision.json`; None for the plain rule, which has no file."""
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
    """Write or remove `decision.json`, and the manifest with it; of schema version 0 none is verified."""
    if run.is_version_0:
        write(folder / DECISION_FILE)
    else:
        replace_file(folder, DECISION_FILE, write)


def _number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; it must be from {least:g} to {most:g}.")
    return float(value)
