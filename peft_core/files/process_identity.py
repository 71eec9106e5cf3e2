"""Unique identity of a process: a pid is reused, but not together with start time and boot id."""

import os
from pathlib import Path

import psutil

_PROC = Path("/proc")


def process_identity(pid: int) -> str | None:
    """Return a unique identity of a running process, or None if no such process runs.

    On Linux it consists of the boot id and the start time in clock ticks since boot, which does not depend on
    the wall clock; elsewhere it is the creation time reported by psutil. A zombie counts as not running.
    """
    if isinstance(pid, bool) or not isinstance(pid, int) or pid < 1:
        return None
    return _linux_identity(pid) if _PROC.joinpath("self/stat").exists() else _portable_identity(pid)


def own_identity() -> str:
    """Return the identity of this process."""
    return process_identity(os.getpid()) or f"pid-{os.getpid()}"  # the latter if /proc cannot be read


def is_same_process(pid: int, identity: str) -> bool:
    """Return whether the process with this identity still runs under this pid."""
    return process_identity(pid) == identity or (pid == os.getpid() and identity == own_identity())


def command_line(pid: int) -> list[str]:
    """Return the arguments of a running process; an empty list if it does not run or cannot be read."""
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, ValueError, OverflowError):
        return []


def _linux_identity(pid: int) -> str | None:
    try:
        fields = _PROC.joinpath(str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *numbers = fields.rpartition(")")[2].split()  # the name in parentheses may contain any character
    return None if state in "ZX" else f"{_boot_id()}-{numbers[18]}"


def _boot_id() -> str:
    try:
        return _PROC.joinpath("sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "boot"


def _portable_identity(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.3f}"
    except psutil.Error:
        return None
