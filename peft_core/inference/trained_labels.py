"""Labels of a file that is predicted, read as the run read those that it was trained on."""

from typing import Any

from peft_core.data.columns import Columns, labels_of
from peft_core.data.text_keys import text_key
from peft_core.errors import RunError
from peft_core.problems import MULTI
from peft_core.runs import Run

_ONE_SPELLING = "label_spelling"


class TrainedLabels:
    """How a run read its labels: separator, decimal mark, one spelling of each, and labels left out.

    Args:
        run: the run; one that was stopped, or has lost its result, says nothing of its data.
        names: the labels that its model knows.
        problem_type: of the model.
    """

    def __init__(self, run: Run, names: list[str], problem_type: str) -> None:
        data = trained_data(run)
        self.columns, self.problem_type = data.get("columns", {}), problem_type
        dropped = data.get("dropped", [])
        left_out = {label for row in dropped if row["remedy"] != _ONE_SPELLING for label in row["labels"]}
        self.left_out = left_out - set(names)
        one_spelling = _ONE_SPELLING in run.config().remedies
        self._names = {text_key(name): name for name in names} if one_spelling else {}

    def read(self, cells: list[Any], column: str) -> list[Any]:
        """The labels in a column's cells; None for a row without one that training would have kept."""
        separator, mark = self.columns.get("label_separator"), self.columns.get("decimal_mark")
        columns = Columns("", None, column, self.problem_type, separator, (), decimal_mark=mark)
        return [self._as_trained(label) for label in labels_of(cells, columns, None)]

    def _as_trained(self, label: Any) -> Any:
        if self.problem_type == MULTI and label:
            kept = (self._spelled(name) for name in label if name not in self.left_out)
            return tuple(dict.fromkeys(kept)) or None
        if isinstance(label, str):
            return None if label in self.left_out else self._spelled(label)
        return label

    def _spelled(self, name: str) -> str:
        return self._names.get(text_key(name), name)


def trained_data(run: Run) -> dict[str, Any]:
    """What a run's result says of its data; empty for a run that was stopped, or has lost its result."""
    try:
        return run.result().get("data", {})
    except RunError:
        return {}
