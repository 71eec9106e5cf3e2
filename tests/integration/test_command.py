"""The command peft-workbench: its answers as text and JSON, its errors, and the wheel that installs it."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, environment, python

from peft_core.cli import main
from peft_core.config import TrainConfig
from peft_core.runs import Run

TRAINABLE = 74_498


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process and return its JSON answer."""

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_count_command_counts_settings(run_json: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json("count")["trainable"] == TRAINABLE
    assert run_json("count", "r=16")["trainable"] > TRAINABLE
    assert main(["count", 'target_modules=["query"]']) == 0
    assert "trainable: " in capsys.readouterr().out


def test_count_command_reads_settings_from_file(run_json: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(TrainConfig(r=16).to_json(), encoding="utf-8")
    expected = run_json("count", "r=16")
    assert run_json("count", "--config", str(config)) == expected
    assert run_json("count", "r=8", "--config", str(config))["trainable"] == TRAINABLE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["count", "r"], "'r' is not SETTING=VALUE; write for example r=16."),
        (["count", "rank=8"], "There is no setting named 'rank'"),
        (["count", "r=0"], "r is 0"),
        (["count", "--config", "missing.json"], "--config missing.json cannot be read"),
        (["merge", "unknown"], "There is no run"),
    ],
)
def test_command_error_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--runs-dir", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and not output.out


def test_runs_command_lists_runs(run_json: Any, merged_run: Run, tmp_path: Path) -> None:
    assert run_json("runs", "--runs-dir", str(tmp_path)) == []
    (listed,) = run_json("runs", "--runs-dir", str(merged_run.folder.parent))
    assert listed == {"run_id": merged_run.run_id, "status": "FINISHED", "error": None}


def test_train_merge_and_predict_commands_work_on_a_run(
    run_json: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = str(tmp_path / "runs")
    assignments = [f"{name}={value}" for name, value in settings.items()]
    trained = run_json("train", *assignments, "--runs-dir", folder)
    assert trained["status"] == "FINISHED" and trained["result"]["problem_type"]
    run_id = trained["run_id"]
    assert run_json("merge", run_id, "--runs-dir", folder)["holds"] is True
    for variant in ("adapter", "merged"):
        (prediction,) = run_json(
            "predict", run_id, "The food was awful.", "--variant", variant, "--runs-dir", folder
        )
        assert prediction["text"] == "The food was awful." and prediction["label"] in ("bad", "good")


def test_serve_command_takes_the_options_of_the_app() -> None:
    done = python("-m", "peft_core.cli", "serve", "--help")
    assert done.returncode == 0
    assert "usage: peft-workbench serve" in done.stdout and "--share" in done.stdout
    refused = python("-m", "peft_core.cli", "serve", "--share")
    assert refused.returncode == 2 and "--share opens this app" in refused.stderr


def test_help_loads_neither_torch_nor_gradio() -> None:
    code = (
        "import sys\nfrom peft_core.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'gradio', 'transformers'} & set(sys.modules)))"
    )
    done = python("-c", code)
    assert done.stdout.endswith("[]\n") and "predict" in done.stdout, done.stderr


def test_wheel_contains_the_command_the_types_and_the_assets(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(ROOT)], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("peft_workbench-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "peft-workbench = peft_core.cli:main" in archive.read(entry_points).decode()
        metadata = archive.read(entry_points.replace("entry_points.txt", "METADATA")).decode()
    assert "Requires-Dist: peft==" in metadata
    assert {"peft_core/py.typed", "peft_core/assets/style.css", "peft_core/assets/visitor.js"} <= names
    assert any(name.startswith("peft_core/export/page/static/") for name in names)
    assert not any(name.startswith(("tests/", "batteries/", "benchmarks/")) for name in names)
    code = "from peft_core.ui.theme import STYLE; print(STYLE)"
    installed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path / "installed")),
        capture_output=True,
        text=True,
    )
    assert installed.stdout.strip() == str(tmp_path / "installed/peft_core/assets/style.css"), (
        installed.stderr
    )
