"""Metadata saved beside an adapter (`classifier.json`): labels, max length, problem type, base revision."""

import json
from dataclasses import dataclass
from typing import Any

from peft_core.errors import RunError
from peft_core.models.heads import HeadChange
from peft_core.runs import Run

CLASSIFIER_FILE = "classifier.json"


@dataclass(frozen=True)
class Classifier:
    """What the use of an adapter needs beside `adapter_config.json`.

    `untrained` are the modules that the base checkpoint has no weights for; `head_is_fresh` says whether the
    classification head was one of them, `head_change` how labels were mapped to a trained head.
    """

    labels: tuple[str, ...]
    max_length: int
    base_model_name_or_path: str
    base_revision: str | None
    untrained: tuple[str, ...]
    head_is_fresh: bool
    problem_type: str = "single_label_classification"
    text_pair: bool = False  # whether it was trained on pairs of texts
    head_change: HeadChange | None = None

    @classmethod
    def read(cls, run: Run) -> "Classifier":
        """Read from a run's adapter folder; RunError if there is no adapter, DamagedError if it was lost."""
        if not run.has_adapter:
            run.verify_adapter()
            status = run.state().status
            raise RunError(f"The run {run.run_id!r} has no adapter (it is {status}); pick a finished run.")
        run.verify(run.adapter)
        path = run.adapter / CLASSIFIER_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            labels = tuple(fields.pop("id2label").values())
            change = fields.pop("head_change", None)
            change = HeadChange.from_dict(change) if change else None
            return cls(labels=labels, untrained=tuple(fields.pop("untrained")), head_change=change, **fields)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"The adapter of {run.run_id!r} has no {CLASSIFIER_FILE}; train it again."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, the labels as `id2label` of a model's config."""
        return {
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "problem_type": self.problem_type,
            "max_length": self.max_length,
            "base_model_name_or_path": self.base_model_name_or_path,
            "base_revision": self.base_revision,
            "untrained": list(self.untrained),
            "head_is_fresh": self.head_is_fresh,
            "text_pair": self.text_pair,
            "head_change": self.head_change.to_dict() if self.head_change else None,
        }
