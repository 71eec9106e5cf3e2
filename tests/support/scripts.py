"""Run a training script in this process, in the folder of the files that it reads."""

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT
from safetensors.torch import load_file

from peft_core.export.script.compose import SCRIPT_FILE
from peft_core.export.script.reproduction import save_rows, script_of
from peft_core.runs import Run


def run_script(run: Run, folder: Path) -> dict[str, Any]:
    """Run the script of a run in a new folder and return its globals."""
    folder.mkdir(parents=True)
    (folder / SCRIPT_FILE).write_text(script_of(run), encoding="utf-8")
    save_rows(run, folder)
    return run_script_file(folder / SCRIPT_FILE)


def run_script_file(path: Path) -> dict[str, Any]:
    """Run a Python file in its folder and return its globals."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(path.parent)
        return runpy.run_path(str(path))


def assert_same(run: Run, folder: Path, script_globals: dict[str, Any]) -> None:
    """Assert that the script has the metrics of the run and saved the same weights."""
    run_result = run.result()
    assert script_globals["result"] == pytest.approx(
        {name: run_result[name] for name in script_globals["result"]}, abs=1e-12
    )
    expected = load_file(run.adapter / "adapter_model.safetensors")
    path = folder / "output" / "adapter" / "adapter_model.safetensors"
    saved = (
        load_file(path) if path.is_file() else load_file(folder / "output" / "model" / "model.safetensors")
    )
    assert set(expected) <= set(saved)
    for name, tensor in expected.items():
        assert tensor.equal(saved[name]), name


def assert_ruff_clean(folder: Path) -> None:
    """Assert that the scripts in a folder pass ruff check and ruff format."""
    for command in (["check", "--ignore=F821"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(folder)]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
