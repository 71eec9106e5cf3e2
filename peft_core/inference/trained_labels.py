"""Read the labels of a predicted file in the way in which the run's training labels were read."""

from collections.abc import Sequence
from typing import Any

from peft_core.data.columns import Columns, labels_of
from peft_core.data.text_keys import text_key
from peft_core.errors import RunError
from peft_core.problem_types import MULTI
from peft_core.runs import Run

_ONE_SPELLING = "label_spelling"


class TrainedLabels:
    """A reader with the run's label separator, decimal mark, unified spellings and dropped labels.

    Args:
        run: The run. Defaults apply if it was stopped or has lost its result.
        names: The labels that its model knows.
        problem_type: Of the model.
    """

    def __init__(self, run: Run, names: Sequence[str], problem_type: str) -> None:
        data = trained_data(run)
        self.columns, self.problem_type = data.get("columns", {}), problem_type
        dropped = data.get("dropped", [])
        dropped_labels = {
            label for row in dropped if row["remedy"] != _ONE_SPELLING for label in row["labels"]
        }
        self.dropped_labels = dropped_labels - set(names)
        unifies_spelling = _ONE_SPELLING in run.config().remedies
        self._names = {text_key(name): name for name in names} if unifies_spelling else {}

    def read(self, cells: list[Any], column: str) -> list[Any]:
        """Return the label of each cell; None for an empty cell or a row that training would have dropped."""
        separator, mark = self.columns.get("label_separator"), self.columns.get("decimal_mark")
        columns = Columns("", None, column, self.problem_type, separator, (), decimal_mark=mark)
        return [self._as_trained(label) for label in labels_of(cells, columns, None)]

    def _as_trained(self, label: Any) -> Any:
        if self.problem_type == MULTI and label:
            names = (self._unify_spelling(name) for name in label if name not in self.dropped_labels)
            return tuple(dict.fromkeys(names)) or None
        if isinstance(label, str):
            return None if label in self.dropped_labels else self._unify_spelling(label)
        return label

    def _unify_spelling(self, name: str) -> str:
        return self._names.get(text_key(name), name)


def trained_data(run: Run) -> dict[str, Any]:
    """Return the `data` entry of a run's result; empty if the run was stopped or has lost its result."""
    try:
        return run.result().get("data", {})
    except RunError:
        return {}
