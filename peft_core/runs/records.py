"""The records of a run folder: its state (`status.json`) and its result (`evaluation/result.json`)."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from peft_core.files.records import Finite, Record, Seconds

SCHEDULED, RUNNING, FINISHED, FAILED, KILLED = "SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"
ENDED = (FINISHED, FAILED, KILLED)
Status = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Interval = Annotated[list[Finite], Field(min_length=2, max_length=2)]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
_REQUIRED_ENTRIES = {
    "single_label_classification": (
        "accuracy", "accuracy_interval", "macro_f1", "confusion_matrix", "labels", "train_label_shares",
    ),
    "multi_label_classification": (
        "micro_f1", "micro_f1_interval", "macro_f1", "subset_accuracy", "per_label", "labels",
        "train_label_shares",
    ),
    "regression": (
        "spearman", "spearman_interval", "pearson", "mae", "rmse", "points", "train_label_range",
    ),
}  # fmt: skip


class RunState(Record):
    """The current state of a run, or how it ended. Times are seconds since the epoch.

    Attributes:
        queued: When the run was last continued; the queue orders other runs by `created`.
        process: Identity of the training process under `pid` (see `process_identity`).
        train_seconds: Time of all trainings of this run together, including steps that a kill undid.
        forecast_seconds: Forecast for the whole training when it was submitted.
        notes: Messages to the user about this training: what was skipped, kept or fallen back to.
        evaluate_only: Whether the next training process takes no step, and evaluates the newest checkpoint.
        metrics_check: The check of a row that metrics.jsonl must contain.
        damage: Why the state could not be read; never written to disk.
    """

    status: Status
    created: Seconds = 0.0
    queued: Seconds | None = None
    started: Seconds | None = None
    ended: Seconds | None = None
    pid: int | None = None
    process: str | None = None
    stage: str | None = None
    error: str | None = None
    problem_type: ProblemType | None = None
    step: Count | None = None
    max_steps: Count | None = None
    tokens_per_second: Finite | None = None
    train_seconds: Finite | None = None
    eta: Finite | None = None
    forecast_seconds: Finite | None = None
    speedups: dict[str, Any] | None = None
    batch_parts: Count | None = None
    gradient_checkpointing: bool | None = None
    notes: list[str] = []
    evaluate_only: bool = False
    metrics_check: str | None = None
    damage: str | None = Field(default=None, exclude=True)


class Baseline(Record):
    """The best constant prediction, with its metrics as further entries."""

    model_config = ConfigDict(extra="allow")
    label: str


class Parameters(Record):
    """Parameter counts of the trained model, as in `counts.ParameterCount`."""

    model_config = ConfigDict(extra="allow")
    trainable: Count
    total: Count
    percent: Finite


class RunResult(Record):
    """The metrics of a run on its test rows. `result["accuracy"]` reads any entry by its name.

    The metrics depend on the problem type (`problem_types.METRICS`); entries without a field here are stored
    as they are. `adapter_sha256` is the hash of the adapter that was evaluated.
    """

    model_config = ConfigDict(extra="allow")

    problem_type: ProblemType
    baseline: Baseline
    train_rows: Count
    eval_rows: Count
    parameters: Parameters
    untrained: list[str]
    train_seconds: Finite
    tokens_per_second: Finite
    adapter_sha256: str | None = None
    accuracy: Finite | None = None
    accuracy_interval: Interval | None = None
    micro_f1: Finite | None = None
    micro_f1_interval: Interval | None = None
    macro_f1: Finite | None = None
    subset_accuracy: Finite | None = None
    spearman: Finite | None = None
    spearman_interval: Interval | None = None
    pearson: Finite | None = None
    mae: Finite | None = None
    rmse: Finite | None = None
    eval_loss: Finite | None = None
    labels: list[str] | None = None
    train_label_shares: dict[str, Finite] | None = None
    train_label_range: Interval | None = None
    per_label: list[dict[str, Any]] | None = None
    confusion_matrix: list[list[Count]] | None = None
    points: list[Interval] | None = None

    @model_validator(mode="after")
    def _has_metrics_of_problem_type(self) -> Self:
        for name in _REQUIRED_ENTRIES[self.problem_type]:
            if getattr(self, name) is None:
                raise ValueError(f"it has no {name}")
        return self

    def __getitem__(self, name: str) -> Any:
        return self.model_dump(mode="json", include={name})[name]

    def __contains__(self, name: str) -> bool:
        return name in self.to_dict()

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry by its name, or the default."""
        return self.to_dict().get(name, default)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries as JSON types, without those of other problem types."""
        entries = self.model_dump(mode="json")
        return {name: entry for name, entry in entries.items() if entry is not None or name not in _FIELDS}


_FIELDS = frozenset(RunResult.model_fields)
