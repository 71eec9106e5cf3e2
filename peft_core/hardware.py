"""Hardware of this machine: matrix product speed, free memory, and caches of compiled operations."""

import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch

MIN_SPEEDUP = 1.2  # factor from which on a lower precision is used
_CACHE_CAPACITY = "48"  # compiled operations: those of one step, so that the next step can reuse them
_CGROUP = Path("/sys/fs/cgroup")
_SIZE, _GPU_SIZE, _TRIES = 512, 4096, 5


@lru_cache
def is_bfloat16_faster(device: torch.device) -> bool:
    """Measure whether bfloat16 matrix products are faster than float32 on a device, in a few milliseconds."""
    size = _GPU_SIZE if device.type == "cuda" else _SIZE  # a small product would only measure call overhead
    full_pair, half_pair = (_square(size, dtype, device) for dtype in (torch.float32, torch.bfloat16))
    return _product_seconds(full_pair) / _product_seconds(half_pair) >= MIN_SPEEDUP


def matmul_flops_per_second(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the measured rate of a matrix product in FLOP per second, as the best of a few attempts."""
    return 2 * first.shape[0] * first.shape[1] * second.shape[1] / _product_seconds((first, second))


def free_bytes(device: torch.device) -> int:
    """Return the free memory in bytes: of the GPU, or of this machine or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:  # the limit of a container, whose page cache (inactive files) is freed on demand
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        files = re.search(r"^inactive_file (\d+)$", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or no limit: "max"
        return free
    return min(free, limit - used + (int(files[1]) if files else 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of a GPU or of the machine is full."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def expect_many_shapes() -> None:
    """Prepare this process for batches of many different shapes. Call it before the first operation.

    oneDNN caches 1,024 operations, each compiled for one shape and about 0.8 MB in size. A step needs a few
    dozen; the others would only grow to hundreds of megabytes. cuDNN's attention builds a plan for each new
    shape, which takes longer than many steps on a GPU; the other attention kernels accept any shape.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _CACHE_CAPACITY)
    os.environ.setdefault("LRU_CACHE_CAPACITY", _CACHE_CAPACITY)
    torch.backends.cuda.enable_cudnn_sdp(False)


def measure_seconds(function: Callable[[], Any]) -> float:
    """Return the wall-clock time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _square(size: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    return matrix, matrix


def _product_seconds(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    first, second = pair
    return min(measure_seconds(lambda: (first @ second)[0, 0].item()) for _ in range(_TRIES))
