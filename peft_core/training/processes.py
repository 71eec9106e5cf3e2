"""What differs where several processes train one run: one of them leads, and alone writes.

They are started by `accelerate launch` or torchrun, which number them in RANK and WORLD_SIZE.
"""

import contextlib
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from peft_core.runs import RunInTraining


def launch_command(count: int, arguments: list[str]) -> list[str]:
    """The command that runs `peft_core.train` with these arguments in `count` processes, a GPU each."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    return [*launch, "--num_processes", str(count), "-m", "peft_core.train", *arguments]


def is_shared() -> bool:
    """Whether something has started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def processes() -> int:
    """How many processes train this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device() -> torch.device:
    """This process's GPU, or the processor."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def rank() -> int:
    """The number of this process among them; 0 leads."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    return rank() == 0


def broadcast_from_main(answer: Any) -> Any:
    """Return the main process's answer in every process, once all have called this."""
    if processes() == 1:
        return answer
    told = [answer]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def leave_process_group() -> None:
    """Leave the process group, whose members would abort when one ends; only the main process goes on."""
    if processes() > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


class FollowedRun(RunInTraining):
    """A run's folder as a process that follows has it: it reads everything and writes nothing."""

    def begin(self) -> None: ...

    def update(self, **changes: Any) -> None: ...

    def note(self, sentence: str) -> None: ...

    def log_metrics(self, row: dict[str, Any]) -> None: ...

    def forget_metrics_after(self, step: int) -> None: ...

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
