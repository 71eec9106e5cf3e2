"""Garbage collection is paused during imports and enabled afterwards."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import python

from batteries.children import Report, run_child
from peft_core.merging import merge
from peft_core.service import worker
from peft_core.service.references import FunctionReference
from peft_core.training import entry

TASKS = """
import gc
while_imported = gc.isenabled()
def answer():
    return [while_imported, gc.isenabled()]
"""


def test_commands_pause_collection_until_main() -> None:
    code = "import sys; sys.argv[0] = {!r}; import gc, peft_core; print(gc.isenabled())"
    assert python("-c", code.format("-m")).stdout == "False\n"
    assert python("-c", code.format("app.py")).stdout == "True\n"


@pytest.mark.parametrize(("module", "name"), [(entry, "train"), (merge, "merge")])
def test_main_resumes_collection(module: Any, name: str, tmp_path: Path) -> None:
    def call_main(report: Report) -> None:
        gc.disable()
        setattr(module, name, lambda *_, **__: report("enabled", gc.isenabled()))
        module.main([str(tmp_path)])

    assert run_child(call_main).first("enabled") == "True"


def test_worker_pauses_collection_while_it_imports_its_tasks(tmp_path: Path) -> None:
    (tmp_path / "light_tasks.py").write_text(TASKS, encoding="utf-8")

    def call(report: Report) -> None:
        sys.path.insert(0, str(tmp_path))
        worker._TASKS = "light_tasks"
        report("enabled", worker._run_call(worker._Call(FunctionReference("light_tasks", "answer")), 0))

    assert run_child(call).first("enabled") == "[False, True]"
