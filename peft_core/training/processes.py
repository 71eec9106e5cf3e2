"""Distributed training: several processes train one run, and only the main process writes.

`accelerate launch` or torchrun start the processes and number them in RANK and WORLD_SIZE.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from peft_core.runs import RunInTraining

T = TypeVar("T")


def launch_command(count: int, arguments: list[str]) -> list[str]:
    """Return the command that runs `peft_core.training.entry` in `count` processes, one per GPU."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    return [*launch, "--num_processes", str(count), "-m", "peft_core.train", *arguments]


def is_shared() -> bool:
    """Whether a launcher started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def processes() -> int:
    """Return how many processes train this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device() -> torch.device:
    """Return this process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def rank() -> int:
    """Return the rank of this process; the main process has rank 0."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def broadcast_from_main(obj: T) -> T:
    """Return the main process's object in every process, once all processes have called this."""
    if processes() == 1:
        return obj
    objects = [obj]
    dist.broadcast_object_list(objects, src=0)
    return objects[0]


def leave_process_group() -> None:
    """Leave the process group, so that the main process can continue alone after the others have ended."""
    if processes() > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


class ReadOnlyRun(RunInTraining):
    """A run's folder for a process that is not the main process: it reads everything and writes nothing."""

    def begin(self) -> None: ...

    def update(self, **changes: Any) -> None: ...

    def note(self, sentence: str) -> None: ...

    def log_metrics(self, row: dict[str, Any]) -> None: ...

    def forget_metrics_after(self, step: int) -> None: ...

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        yield
