"""When a training run does what, in optimizer steps: its evaluations, its losses, AdaLoRA's ranks."""

import math

from peft_core.config import TrainConfig

EVAL_ROWS = 256  # validation rows of an evaluation during training, if there are so many
EVAL_SHARE = 0.4  # texts that all evaluations of a run may read, over those that it trains on
CURVE_POINTS, LOSS_POINTS = 4, 40
START_BATCHES = 64  # of the training rows, where the method starts from them
ADALORA_WARM_UP, ADALORA_REST, ADALORA_MOVES = 0.1, 0.3, 100


def total_steps(config: TrainConfig, rows: int, processes: int = 1) -> int:
    """Optimizer steps of the whole training on so many rows, shared by so many processes."""
    batches = math.ceil(math.ceil(rows / config.per_device_train_batch_size) / processes)
    return math.ceil(math.ceil(batches / config.gradient_accumulation_steps) * config.num_train_epochs)


def save_steps(steps: int) -> int:
    """Steps from one checkpoint to the next."""
    return max(1, math.ceil(steps / CURVE_POINTS))


def eval_steps(config: TrainConfig, steps: int) -> int:
    """Steps from one evaluation on validation rows to the next; the last step has one in any case."""
    return config.eval_steps or save_steps(steps)


def evaluations_of(config: TrainConfig, rows: int, processes: int = 1) -> int:
    """Evaluations on validation rows in a whole training on so many training rows."""
    steps = total_steps(config, rows, processes)
    return math.ceil(steps / eval_steps(config, steps))


def evaluation_rows(config: TrainConfig, train_rows: int, validation_rows: int, processes: int = 1) -> int:
    """How many validation rows, counted from the first, each evaluation during training is measured on.

    All of them where that is cheap: a text costs about half as much to evaluate as to train on, so with
    `EVAL_SHARE` the evaluations take about a fifth of a run. At least `EVAL_ROWS`, as far as there are any.
    """
    texts = EVAL_SHARE * train_rows * config.num_train_epochs
    affordable = int(texts / evaluations_of(config, train_rows, processes))
    return min(validation_rows, max(EVAL_ROWS, affordable))


def loss_steps(steps: int) -> int:
    """Steps from one logged training loss to the next."""
    return max(1, steps // LOSS_POINTS)


def adalora_schedule(steps: int) -> dict[str, int]:
    """AdaLoraConfig's schedule: the steps before the ranks fall, those after, and between two moves."""
    return {
        "total_step": max(steps, 1),
        "tinit": int(ADALORA_WARM_UP * steps),
        "tfinal": int(ADALORA_REST * steps),
        "deltaT": max(1, steps // ADALORA_MOVES),
    }


def first_comparable_step(config: TrainConfig, steps: int) -> int:
    """The first step whose weights may be kept: AdaLoRA's ranks are above their target until they rest."""
    if config.method != "adalora":
        return 0
    schedule = adalora_schedule(steps)
    return schedule["total_step"] - schedule["tfinal"]
