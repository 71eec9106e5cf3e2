"""The records of a run folder: its state (`status.json`) and its result (`evaluation/result.json`)."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from peft_core.records import Finite, Record, Seconds

SCHEDULED, RUNNING, FINISHED, FAILED, KILLED = "SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"
ENDED = (FINISHED, FAILED, KILLED)
Status = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Interval = Annotated[list[Finite], Field(min_length=2, max_length=2)]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
_BY_PROBLEM_TYPE = {
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
    """What a run does now, or how it ended. Times are seconds since the epoch.

    `process` is the identity of the training process under `pid` (`process_identity`). `notes` are sentences
    for the person about this training: what was skipped, kept or fallen back to. `evaluate_only`: the next
    training process takes no step, and evaluates the newest checkpoint as it is. `metrics_check` is the check
    of a row that metrics.jsonl must hold. `queued` is when a run was continued last; until then it queues by
    `created`. `forecast_seconds` is what the whole training was forecast to take
    when it was submitted. `train_seconds` is the time of all trainings of this run together,
    steps included that a kill undid. `damage`, which is never on disk, is why the state could not be
    read.
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
    """The best constant answer; its metrics beside it by their names."""

    model_config = ConfigDict(extra="allow")
    label: str


class Parameters(Record):
    """What `counts.ParameterCount` says of the trained model."""

    model_config = ConfigDict(extra="allow")
    trainable: Count
    total: Count
    percent: Finite


class RunResult(Record):
    """What a run measured on its test rows. `result["accuracy"]` and its kin read any entry by its name.

    Which metrics there are depends on the problem type (`problems.METRICS`); entries that are not named here
    are kept as they are. `adapter_sha256` is the hash of the adapter that was measured.
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
    def _has_what_its_problem_type_measures(self) -> Self:
        for name in _BY_PROBLEM_TYPE[self.problem_type]:
            if getattr(self, name) is None:
                raise ValueError(f"it has lost its {name}")
        return self

    def __getitem__(self, name: str) -> Any:
        return self.model_dump(mode="json", include={name})[name]

    def __contains__(self, name: str) -> bool:
        return name in self.to_dict()

    def get(self, name: str, default: Any = None) -> Any:
        """An entry by its name, or the default."""
        return self.to_dict().get(name, default)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, without the entries of other problem types."""
        entries = self.model_dump(mode="json")
        return {name: entry for name, entry in entries.items() if entry is not None or name not in _FIELDS}


_FIELDS = frozenset(RunResult.model_fields)
