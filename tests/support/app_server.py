"""Start the app in its own process on loopback, for tests that send requests to it."""

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

SECONDS_TO_START = 240  # under load; 5 s on an idle machine
_PATCHED = """
import runpy, sys
sys.argv[0] = "app.py"
{patch}
runpy.run_path("app.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Server:
    """URL, runs folder and process of a running app."""

    url: str
    runs_dir: Path
    process: subprocess.Popen


@contextlib.contextmanager
def serve(runs_dir: Path, *flags: str, patch: str = "", **changes: str) -> Iterator[Server]:
    """Run `python app.py` until the block ends.

    Args:
        runs_dir: Folder of runs.
        flags: More command-line arguments.
        patch: Python code that runs in the app's process before it serves, such as a slower handler.
        changes: Environment variables.
    """
    port = free_port()
    temporary = runs_dir.parent / "tmp"  # gradio serves files of the temporary folder, so no run may be in it
    temporary.mkdir(exist_ok=True)
    own = {"HF_HUB_DISABLE_TELEMETRY": "1", "TMPDIR": str(temporary)}
    environment = {**os.environ, **own, **changes}
    if "PYTEST_XDIST_WORKER" not in environment:  # under xdist, another worker uses the other core
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
            return  # a login page also means that the app is served
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"nothing answered at {url} in {SECONDS_TO_START} s")
