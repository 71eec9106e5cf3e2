"""What this machine multiplies how fast, and how many compiled operations a process keeps."""

import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch

GAIN = 1.2  # times as fast, from which half-width numbers are taken
_KEPT = "48"  # compiled operations: those of one step, so that the next finds what has the same shape
_CGROUP = Path("/sys/fs/cgroup")
_SIZE, _GPU_SIZE, _TRIES = 512, 4096, 5


@lru_cache
def gains_by_half(device: torch.device) -> bool:
    """Whether this machine's product of bfloat16 matrices is faster; it takes milliseconds."""
    size = _GPU_SIZE if device.type == "cuda" else _SIZE  # a small one would measure the call alone
    wide, half = (_square(size, dtype, device) for dtype in (torch.float32, torch.bfloat16))
    return _product_seconds(wide) / _product_seconds(half) >= GAIN


def product_rate(left: torch.Tensor, right: torch.Tensor) -> float:
    """Operations a second of this product, the best of a few: two for each multiplication."""
    return 2 * left.shape[0] * left.shape[1] * right.shape[1] / _product_seconds((left, right))


def free_bytes(device: torch.device) -> int:
    """Memory that a process may still take: of the GPU, or of this machine or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:  # a container's own limit; files that were read make room when it is asked for
        limit = int((_CGROUP / "memory.max").read_text())
        held = int((_CGROUP / "memory.current").read_text())
        files = re.search(r"^inactive_file (\d+)$", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # none, or "max"
        return free
    return min(free, limit - held + (int(files[1]) if files else 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory, or the processor's, is full."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def expect_many_shapes() -> None:
    """Prepare this process for batches that each have another shape; only before its first operation.

    oneDNN keeps 1,024 operations, each compiled for one shape and of some 0.8 MB: a step needs a few dozen,
    and the rest would only grow to hundreds of megabytes. cuDNN's attention makes a plan for each new shape,
    which takes a GPU longer than many steps; its other kernels take any shape.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KEPT)
    os.environ.setdefault("LRU_CACHE_CAPACITY", _KEPT)
    torch.backends.cuda.enable_cudnn_sdp(False)


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _square(size: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    return matrix, matrix


def _product_seconds(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    left, right = pair
    return min(seconds(lambda: (left @ right)[0, 0].item()) for _ in range(_TRIES))
