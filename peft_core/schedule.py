"""When a training run does what, in optimizer steps: its curve, its losses, AdaLoRA's ranks."""

import math

from peft_core.config import TrainConfig

CURVE_ROWS = 256  # validation rows that the live curve uses; the result comes from the test rows alone
CURVE_POINTS, LOSS_POINTS = 4, 40
START_BATCHES = 64  # of the training rows, where the method starts from them
ADALORA_WARM_UP, ADALORA_REST, ADALORA_MOVES = 0.1, 0.3, 100


def total_steps(config: TrainConfig, rows: int, processes: int = 1) -> int:
    """Optimizer steps of the whole training on so many rows, shared by so many processes."""
    batches = math.ceil(rows / config.per_device_train_batch_size)
    return math.ceil(math.ceil(batches / processes) * config.num_train_epochs)


def curve_steps(steps: int) -> int:
    """Steps from one point of the curve, and one checkpoint, to the next."""
    return max(1, math.ceil(steps / CURVE_POINTS))


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
