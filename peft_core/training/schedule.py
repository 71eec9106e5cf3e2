"""The schedule of a training run in optimizer steps: evaluations, logged losses, checkpoints, AdaLoRA."""

import math

from peft_core.config import TrainConfig

EVAL_ROWS = 256  # validation rows of an evaluation during training, at least, if there are as many
EVAL_SHARE = 0.4  # of the texts that a run trains on: the texts that all its evaluations together may read
CURVE_POINTS, LOSS_POINTS = 4, 40
START_BATCHES = 64  # of the training rows, for a method that is initialized from data
ADALORA_WARM_UP, ADALORA_REST, ADALORA_MOVES = 0.1, 0.3, 100


def total_steps(config: TrainConfig, rows: int, processes: int = 1) -> int:
    """Return the optimizer steps of a training on `rows` rows that `processes` processes share."""
    batches = math.ceil(math.ceil(rows / config.per_device_train_batch_size) / processes)
    return math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.num_train_epochs)


def save_steps(steps: int) -> int:
    """Return the steps between two checkpoints."""
    return max(1, math.ceil(steps / CURVE_POINTS))


def eval_steps(config: TrainConfig, steps: int) -> int:
    """Return the steps between two evaluations on validation rows; the last step is always evaluated."""
    return config.eval_steps or save_steps(steps)


def evaluations_of(config: TrainConfig, rows: int, processes: int = 1) -> int:
    """Return the number of evaluations on validation rows in a training on `rows` training rows."""
    steps = total_steps(config, rows, processes)
    return math.ceil(steps / eval_steps(config, steps))


def evaluation_rows(config: TrainConfig, train_rows: int, validation_rows: int, processes: int = 1) -> int:
    """Return how many validation rows, counted from the first, each evaluation during training reads.

    All of them where that is cheap: a text costs about half as much to evaluate as to train on, so with
    `EVAL_SHARE` the evaluations take about a fifth of a run. At least `EVAL_ROWS`, if there are as many.
    """
    texts = EVAL_SHARE * train_rows * config.num_train_epochs
    affordable = int(texts / evaluations_of(config, train_rows, processes))
    return min(validation_rows, max(EVAL_ROWS, affordable))


def loss_steps(steps: int) -> int:
    """Return the steps between two logged training losses."""
    return max(1, steps // LOSS_POINTS)


def adalora_schedule(steps: int) -> dict[str, int]:
    """Return AdaLoraConfig's schedule: when pruning starts and ends, and the steps between two prunings."""
    return {
        "total_step": max(steps, 1),
        "tinit": int(ADALORA_WARM_UP * steps),
        "tfinal": int(ADALORA_REST * steps),
        "deltaT": max(1, steps // ADALORA_MOVES),
    }


def first_comparable_step(config: TrainConfig, steps: int) -> int:
    """Return the first step whose weights may be kept; before it AdaLoRA's ranks exceed their target."""
    if config.method != "adalora":
        return 0
    schedule = adalora_schedule(steps)
    return schedule["total_step"] - schedule["tfinal"]
