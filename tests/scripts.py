"""Runs a training script in this process, beside the files that it reads."""

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
    """Everything that the script of a run leaves behind in its own names."""
    folder.mkdir(parents=True)
    (folder / SCRIPT_FILE).write_text(script_of(run), encoding="utf-8")
    save_rows(run, folder)
    return run_text(folder / SCRIPT_FILE)


def run_text(path: Path) -> dict[str, Any]:
    """The names that a file of Python leaves behind, run in its folder."""
    words = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(words):
        patch.chdir(path.parent)
        return runpy.run_path(str(path))


def assert_same(run: Run, folder: Path, found: dict[str, Any]) -> None:
    """The script measured what the run measured, and left the same bytes of weights."""
    result = run.result()
    assert found["result"] == pytest.approx({name: result[name] for name in found["result"]}, abs=1e-12)
    wanted = load_file(run.adapter / "adapter_model.safetensors")
    path = folder / "output" / "adapter" / "adapter_model.safetensors"
    saved = (
        load_file(path) if path.is_file() else load_file(folder / "output" / "model" / "model.safetensors")
    )
    assert set(wanted) <= set(saved)
    for name, tensor in wanted.items():
        assert tensor.equal(saved[name]), name


def checked_by_the_linter(folder: Path) -> None:
    """The scripts in a folder are as a person would have written them: nothing unused, nothing unknown."""
    for command in (["check", "--ignore=F821"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(folder)]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
