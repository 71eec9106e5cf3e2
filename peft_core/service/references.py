"""The functions of the worker process, referred to without importing their module, which imports torch.

A type checker reads `tasks` as the module `peft_core.service.tasks`, and checks `worker.run(tasks.count, …)`
against the signature of `count`. At run time `tasks.count` is a `FunctionReference`, which the worker process
resolves.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_core.service import tasks


@dataclass(frozen=True)
class FunctionReference:
    """A function by its module and name; it can be pickled without importing the module."""

    module: str
    name: str

    def resolve(self) -> Callable[..., Any]:
        """Import the module and return the function."""
        return getattr(importlib.import_module(self.module), self.name)


@dataclass(frozen=True)
class ModuleReference:
    """A module whose attributes are references to its functions."""

    module: str

    def __getattr__(self, name: str) -> FunctionReference:
        if name.startswith("_"):  # asked for by copy, pickle and the like
            raise AttributeError(name)
        return FunctionReference(self.module, name)


if not TYPE_CHECKING:
    tasks = ModuleReference("peft_core.service.tasks")
