"""Run commands of this project, and pieces of Python, in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment with one thread per process, so that bytes and logits are comparable."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests/support"), **changes}


def python(
    *arguments: str, timeout: float = 180, stdin: str | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run `python arguments...` in the repository and return the finished process."""
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
    """Start `python arguments...` in the repository and discard its output."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment(**changes), **quiet)


def answer(code: str, *arguments: str, **changes: str) -> Any:
    """Return the JSON value that a piece of Python prints on its last line."""
    done = python("-c", code, *arguments, **changes)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wait_for(happened: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first true value of `happened`, polled for at most `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if outcome := happened():
            return outcome
        time.sleep(0.05)
    raise AssertionError(f"nothing happened in {seconds} s")
