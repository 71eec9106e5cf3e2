"""Decide which tests are unit tests: those that start no process and no browser and train nothing.

The rule needs no list of tests. It follows a test, its fixtures and every function of this folder and of
`benchmarks/` that they call; a test that reaches something in `_HEAVY` is not a unit test.
"""

import functools
import inspect
import multiprocessing
import subprocess
from collections.abc import Iterator
from types import CodeType
from typing import Any

import playwright.sync_api
import processes
import pytest
from app_server import serve

from peft_core.merging import merge
from peft_core.service import launcher, worker
from peft_core.training import entry

_HEAVY = {
    id(thing)
    for thing in (
        multiprocessing, subprocess, processes.python, processes.start_python, processes.answer, serve,
        playwright.sync_api.sync_playwright, entry, entry.train, merge, merge.merge, worker.Worker,
        launcher.Launcher,
    )
}  # fmt: skip
_FOLDERS = tuple(str(processes.ROOT / name) for name in ("tests", "batteries", "benchmarks"))


def is_unit_test(item: pytest.Item) -> bool:
    """Return whether a test and its fixtures reach nothing that takes seconds."""
    if not isinstance(item, pytest.Function):
        return False
    fixtures = [definitions[-1].func for definitions in item._fixtureinfo.name2fixturedefs.values()]
    return not any(_is_heavy(function) for function in (item.function, *fixtures))


@functools.cache
def _is_heavy(function: Any) -> bool:
    """Return whether a function, or a function of this folder that it calls, reaches something heavy."""
    checked: set[int] = set()
    pending = [inspect.unwrap(function)]
    while pending:
        current = pending.pop()
        for used in _globals_used_by(current):
            if id(used) in _HEAVY:
                return True
            if id(used) not in checked and _is_of_this_folder(used):
                checked.add(id(used))
                pending += _functions_in(used)
    return False


def _globals_used_by(function: Any) -> Iterator[Any]:
    """Yield the global objects that a function and its inner functions refer to."""
    code = getattr(function, "__code__", None)
    names = _names_in(code) if code else set()
    for name in names & set(getattr(function, "__globals__", ())):
        used = function.__globals__[name]
        yield used
        if inspect.ismodule(used) and _is_of_this_folder(used):
            yield from (vars(used)[part] for part in names & set(vars(used)))


def _names_in(code: CodeType) -> set[str]:
    inner = [_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _functions_in(thing: Any) -> list[Any]:
    if inspect.ismodule(thing):
        return []
    if inspect.isclass(thing):
        return [inspect.unwrap(part) for part in vars(thing).values() if inspect.isfunction(part)]
    return [inspect.unwrap(thing)]


def _is_of_this_folder(thing: Any) -> bool:
    if not (inspect.isfunction(thing) or inspect.isclass(thing) or inspect.ismodule(thing)):
        return False
    try:
        return str(inspect.getsourcefile(thing) or "").startswith(_FOLDERS)
    except TypeError:
        return False
