"""Signals to the process of a training, and to no other."""

import contextlib
import os
import signal
import subprocess

import psutil

from peft_core.runs import Run


def send_signal(run: Run, number: signal.Signals) -> bool:
    """Send a signal to the process that trains a run, and to no other; False if there is none.

    The process is held by a descriptor (Linux pidfd) while its start time and command line are compared with
    the run's, so that the signal cannot reach another process that was given the same pid meanwhile.
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
    """Kill a process and those that it started: on several GPUs it is a launcher, and they train."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.kill()
    child.wait()
