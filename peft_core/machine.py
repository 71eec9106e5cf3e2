"""What this machine multiplies how fast, and how its memory is handed out while it trains."""

import ctypes
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

GAIN = 1.2  # times as fast, from which half-width numbers are taken
_SIZE, _TRIES = 512, 5
_TRIM, _TOP_PAD, _MMAP = -1, -2, -3  # mallopt's names in glibc's malloc.h


@lru_cache
def gains_by_half(device: torch.device) -> bool:
    """Whether this machine's product of bfloat16 matrices is faster; it takes milliseconds."""
    wide, half = (_square(dtype, device) for dtype in (torch.float32, torch.bfloat16))
    return _product_seconds(wide) / _product_seconds(half) >= GAIN


def product_rate(left: torch.Tensor, right: torch.Tensor) -> float:
    """Operations a second of this product, the best of a few: two for each multiplication."""
    return 2 * left.shape[0] * left.shape[1] * right.shape[1] / _product_seconds((left, right))


def keep_freed_memory() -> None:
    """Have freed memory stay with this process: a step frees and asks for the same activations, and to get
    their pages from the system anew takes up to a third of it. Nothing where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_MMAP, 32 << 20), (_TRIM, 1 << 30), (_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _square(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
    return matrix, matrix


def _product_seconds(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    left, right = pair
    return min(seconds(lambda: (left @ right)[0, 0].item()) for _ in range(_TRIES))
