"""The real app in a process of its own, on loopback, for the tests that talk to it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from processes import ROOT

SECONDS_TO_START = 240  # beside other work; 5 s alone
_PATCHED = """
import runpy, sys
sys.argv[0] = "app.py"
{patch}
runpy.run_path("app.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Server:
    """Where the app listens, its runs, and its process."""

    url: str
    runs_dir: Path
    process: subprocess.Popen


@contextlib.contextmanager
def serve(runs_dir: Path, *flags: str, patch: str = "", **changes: str) -> Iterator[Server]:
    """`python app.py` with these flags until the block ends.

    Args:
        runs_dir: the folder of runs.
        flags: more of the command line.
        patch: Python that runs in the app's process before it serves, such as a slower handler.
        changes: environment variables.
    """
    port = free_port()
    temporary = runs_dir.parent / "tmp"  # gradio hands out what lies in the temporary folder: no run does
    temporary.mkdir(exist_ok=True)
    own = {"HF_HUB_DISABLE_TELEMETRY": "1", "TMPDIR": str(temporary)}
    environment = {**os.environ, **own, **changes}
    if "PYTEST_XDIST_WORKER" not in environment:  # else another suite's worker has the other core
        environment.pop("OMP_NUM_THREADS", None)
    program = ["-c", _PATCHED.format(patch=patch)] if patch else ["app.py"]
    command = [sys.executable, *program, "--port", str(port), "--runs-dir", str(runs_dir), *flags]
    log = (runs_dir.parent / f"app-{port}.log").open("w")
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield Server(url, runs_dir, process)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        process.kill()
        process.wait()
        log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert process.poll() is None, "the app ended before it served"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # a page that asks for a password is a page that is served
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"nothing answered at {url} in {SECONDS_TO_START} s")
