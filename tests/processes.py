"""Runs this project's commands, and pieces of Python, each in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def environment(**changes: str) -> dict[str, str]:
    """The tests' own environment with one thread a process, so that bytes and logits can be compared."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests"), **changes}


def python(
    *arguments: str, timeout: float = 180, stdin: str | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    """The finished process of `python arguments...`, run in the repository with these words as its input."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**changes),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start_python(*arguments: str, **changes: str) -> subprocess.Popen[bytes]:
    """The same, still running; its words are dropped."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment(**changes), **quiet)


def answer(code: str, *arguments: str, **changes: str) -> Any:
    """What a piece of Python prints as JSON on its last line."""
    done = python("-c", code, *arguments, **changes)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wait_for(happened: Callable[[], Any], seconds: float = 60) -> Any:
    """What `happened` returns once it is true; fails after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing happened in {seconds} s")
