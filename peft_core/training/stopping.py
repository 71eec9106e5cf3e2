"""Notice a stop request within two seconds, in every stage of a training process.

A stop request is a file in the run folder. Three ways of checking for it cover every stage:

* `StopCheck.__call__` raises `Stopped`. It is cheap enough for any loop: it reads the disk every tenth of a
  second, and only compares two numbers in between. Tokenization, the validation curve and the test evaluation
  call it.
* `StopCheck.between_layers` calls it before every encoder layer and, in the backward pass, after every layer,
  so that a step of a minute ends within the time of a layer. The weights are then those of the last complete
  step, because an optimizer step is never interrupted.
* `StopCheck.interruptible` raises `Stopped` in the middle of code that does not check: reading files, loading
  a model. It is used only where the run ends afterwards, because an exception at an arbitrary line may leave
  a library in an inconsistent state.
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from peft_core.models.modules import encoder_layers

T = TypeVar("T")

INTERVAL = 0.1  # seconds between two reads of the disk
GRACE = 1.0  # seconds after which an exception that the interrupted code swallowed is raised again


class Stopped(BaseException):
    """The user asked the run to stop. A BaseException, so that no handler treats it as a failure."""


class StopCheck:
    """Raises `Stopped` when called once `requested` is true; checks at most every `INTERVAL` seconds."""

    def __init__(self, requested: Callable[[], bool]) -> None:
        self._requested = requested
        self._next_check = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + INTERVAL
            self.check_now()

    def check_now(self) -> None:
        """Like a call, but regardless of the interval."""
        if self._requested():
            self._next_check = 0.0  # so that the next caller checks again
            raise Stopped

    @contextlib.contextmanager
    def between_layers(self, model: nn.Module) -> Iterator[None]:
        """Check before each encoder layer, and after each in the backward pass."""
        hooks: list[Any] = []
        for layer in encoder_layers(model) or ():
            hooks.append(layer.register_forward_pre_hook(self._before_layer))
            hooks.append(layer.register_forward_hook(self._after_layer))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before_layer(self, *_: Any) -> None:
        self()

    def _after_layer(self, _: nn.Module, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
            hidden.register_hook(self._before_layer)

    def interruptible(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; raise `Stopped` at the line that it has reached when Stop is requested.

        A call into C is not interrupted; the exception is raised when it returns to Python. This is a
        function and not a `with` block, because the exception may be raised at any line, including those by
        which `contextlib` enters a block, and the watch would then never end.
        """
        self.check_now()
        watch = _Watch(self._requested, threading.get_ident())
        watch.start()
        try:
            try:
                watch.begin()
                return work()
            finally:
                _end(watch)
        except Stopped:
            _end(watch)  # again: the exception may have been raised before the first call
            raise


class _Watch(threading.Thread):
    """Checks every `INTERVAL` seconds, and raises `Stopped` in another thread between `begin` and `end`.

    The other thread calls both. The threads share plain attributes instead of locks, and nothing is raised
    while the other thread still waits for this one to start: an exception while it acquires or releases a
    lock would leave the lock in a wrong state.
    """

    def __init__(self, requested: Callable[[], bool], thread: int) -> None:
        super().__init__(name="stop-watch", daemon=True)
        self._requested, self._thread = requested, thread
        self._may_raise = self._is_raising = self._has_ended = False

    def run(self) -> None:
        wait = INTERVAL
        while not self._has_ended:
            time.sleep(wait)
            if self._may_raise and self._requested():
                self._is_raising = True  # before `_may_raise` is read again: see `end`
                if self._may_raise:
                    _raise_in(self._thread, Stopped)
                self._is_raising = False
                wait = GRACE

    def begin(self) -> None:
        """Allow exceptions from now on."""
        self._may_raise = True

    def end(self) -> None:
        """Return when no exception is pending any more; a pending exception has been raised by then.

        A pending exception is awaited. Canceling it (`PyThreadState_SetAsyncExc` with NULL) would leave
        Python 3.11 expecting one: each later call would be slower, and under `sys.settrace`, which debuggers
        and coverage use, the next one would never return.
        """
        self._may_raise = False
        self._has_ended = True
        while self._is_raising:
            time.sleep(0.001)
        time.sleep(0)  # Python raises a pending exception after a call


def _end(watch: _Watch) -> None:
    """End a watch; if its exception is raised meanwhile, raise it again afterwards."""
    interrupted = False
    while True:
        try:
            watch.end()
            break
        except Stopped:
            interrupted = True
    if interrupted:
        raise Stopped


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Make a thread raise an error at its next line."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
