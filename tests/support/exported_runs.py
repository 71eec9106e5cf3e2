"""Runs with an ONNX export, one per problem type, as fixtures of conftest.py."""

import json
import shutil
from pathlib import Path

import pytest
from run_files import reseal

from peft_core.export.onnx.model import export_onnx
from peft_core.files.atomic import write_json
from peft_core.runs import Run


@pytest.fixture(scope="session")
def exported(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the finished run with an ONNX export; read-only."""
    return _exported(finished_run, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def exported_tasks(
    calm_topics: Run, stars: Run, pairs: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """Exported multi-label, regression and text-pair runs; read-only."""
    runs = {"topics": calm_topics, "stars": stars, "pairs": pairs}
    return {name: _exported(run, tmp_path_factory.mktemp(name)) for name, run in runs.items()}


@pytest.fixture(params=["reviews", "topics", "stars", "pairs"])
def each_task(request: pytest.FixtureRequest, exported: Run, exported_tasks: dict[str, Run]) -> Run:
    return {"reviews": exported, **exported_tasks}[request.param]


@pytest.fixture
def own_export(exported: Run, tmp_path: Path) -> Run:
    """A copy of the exported run that a test may change."""
    return _copied(exported, tmp_path / "own")


def refuse_int8(run: Run) -> None:
    """Change an export to one whose int8 model was dropped because it lost too much accuracy."""
    path = run.onnx / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    report["int8"] |= {"kept": False, "drop": 1.25}
    write_json(path, report)
    (run.onnx / "onnx/model_quantized.onnx").unlink()
    reseal(run.onnx)


def _exported(run: Run, folder: Path) -> Run:
    copy = _copied(run, folder)
    export_onnx(copy.folder)
    return copy


def _copied(run: Run, folder: Path) -> Run:
    return Run(shutil.copytree(run.folder, folder / run.run_id))
