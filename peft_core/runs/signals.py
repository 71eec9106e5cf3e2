"""Send signals to the process of a training, and never to another process."""

import contextlib
import os
import signal
import subprocess

import psutil

from peft_core.runs import Run


def send_signal(run: Run, number: signal.Signals) -> bool:
    """Send a signal to the process that trains a run. Returns False if there is none.

    A process descriptor (Linux pidfd) is held while start time and command line are compared with the run's,
    so that the signal cannot reach another process that has reused the pid.
    """
    pid = run.training_process()
    if pid is None:
        return False
    if not hasattr(os, "pidfd_open"):
        os.kill(pid, number)
        return True
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if run.training_process() == pid:
                signal.pidfd_send_signal(descriptor, number)
                return True
        finally:
            os.close(descriptor)
    return False


def kill_tree(child: subprocess.Popen) -> None:
    """Kill a process and its descendants: on several GPUs it is a launcher, and its children train."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.kill()
    child.wait()
