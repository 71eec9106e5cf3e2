"""How a training process notices a stop request within two seconds, whatever it is doing.

Stop is a file in the run folder. Three ways of checking for it cover every stage:

* `StopCheck.__call__` raises `Stopped`. It is cheap enough for any loop: between two reads of the disk, a
  tenth of a second apart, it only compares two numbers. Tokenization, the validation curve and the test
  evaluation call it.
* `StopCheck.between_layers` calls it before every encoder layer and, in the backward pass, after every one,
  so that a step of a minute is left within a layer's time. The weights are those of the last whole step then,
  because an optimizer step is never interrupted.
* `StopCheck.interruptible` raises `Stopped` in the middle of code that knows nothing of it: reading files,
  loading a model. It is used only where nothing but the end of the run follows, because an exception at any
  line may leave a library's state half-changed.
"""

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from peft_core.modules import encoder_layers

Answer = TypeVar("Answer")

INTERVAL = 0.1  # seconds between two reads of the disk
GRACE = 1.0  # seconds after which an exception that the interrupted code swallowed is raised again


class Stopped(BaseException):
    """The user asked the run to stop. No Exception, so that no handler on the way takes it for a failure."""


class StopCheck:
    """Raises `Stopped` when called once `requested` is true; it asks at most every `INTERVAL` seconds."""

    def __init__(self, requested: Callable[[], bool]) -> None:
        self._requested = requested
        self._next_check = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + INTERVAL
            self.check_now()

    def check_now(self) -> None:
        """As a call, but without waiting for the interval."""
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

    def interruptible(self, work: Callable[[], Answer]) -> Answer:
        """Return what `work` returns; raise `Stopped` at whatever line it has reached when Stop is asked for.

        One call into C is not interrupted; the exception comes when it returns to Python. This is a function
        and no `with` block: an exception may come at any line, also at those by which `contextlib` enters a
        block, and nothing would end the watch then.
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
            _end(watch)  # once more: the exception may have come before the first time could begin
            raise


class _Watch(threading.Thread):
    """Asks every `INTERVAL` seconds, and raises `Stopped` in another thread from `begin` to `end`.

    Both are called by the other thread. The two share plain attributes, and nothing is raised while the other
    one still waits for this one to start: an exception that came while it takes a lock or gives it back would
    leave the lock in a wrong state.
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
                self._is_raising = True  # before the next look at `_may_raise`: see `end`
                if self._may_raise:
                    _raise_in(self._thread, Stopped)
                self._is_raising = False
                wait = GRACE

    def begin(self) -> None:
        """Allow exceptions from now on."""
        self._may_raise = True

    def end(self) -> None:
        """Return when no exception is on its way any more; one that was is raised by then.

        An exception that is on its way is awaited. Taking it back (`PyThreadState_SetAsyncExc` with NULL)
        would leave Python 3.11 in the belief that one is still to come: each call is slower from then on, and
        under `sys.settrace`, which debuggers and coverage use, the next one never returns.
        """
        self._may_raise = False
        self._has_ended = True
        while self._is_raising:
            time.sleep(0.001)
        time.sleep(0)  # Python raises what is on its way after a call


def _end(watch: _Watch) -> None:
    """End a watch, whose exception may come while that is done; it is raised afterwards."""
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
    """Have a thread raise an error at its next line."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
