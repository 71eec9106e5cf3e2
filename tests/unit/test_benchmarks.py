"""Tests that benchmarks stay runnable without running them: modules import, commands and results exist."""

import importlib
import json
import re
from pathlib import Path

import pytest
from processes import ROOT

from benchmarks import doc_tables

FOLDER = ROOT / "benchmarks"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
RESULTS = sorted((FOLDER / "results").glob("*.json*"))
STANDALONE = "export_matrix_check"  # runs in a fresh process with stock libraries only


def commands() -> dict[str, str]:
    """Return the Makefile's command for each module of the benchmarks that has one."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {
        module: line for line in makefile.splitlines() for module in re.findall(r"-m benchmarks\.(\w+)", line)
    }


@pytest.mark.parametrize("name", [name for name in MODULES if name != STANDALONE])
def test_benchmark_module_imports(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__


def test_benchmarks_have_a_make_target() -> None:
    measuring = {name for name in MODULES if name.startswith("bench_") or name.endswith("_matrix")}
    assert measuring == set(commands())


def test_result_files_named_in_make_targets_exist() -> None:
    paths = {name for line in commands().values() for name in re.findall(r"benchmarks/results/\S+", line)}
    assert paths and all((ROOT / name).is_file() for name in paths)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_are_json(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


@pytest.mark.parametrize(
    ("module", "document"),
    [
        ("method_matrix", doc_tables.METHODS),
        ("bench_methods", doc_tables.METHODS),
        ("export_matrix", doc_tables.BENCHMARKS),
        ("bench_inference", doc_tables.BENCHMARKS),
        ("bench_grid", doc_tables.DEFAULTS),
    ],
)
def test_document_has_the_table_that_a_benchmark_writes(module: str, document: Path) -> None:
    name = importlib.import_module(f"benchmarks.{module}").TABLE
    assert doc_tables.read_table(document, name).count("\n|") > 3


def test_tables_of_recorded_results_match_documents() -> None:
    """Compare the rows of the recorded results; lines about the machine are left out."""
    grid, methods = (
        importlib.import_module(f"benchmarks.{name}") for name in ("bench_grid", "bench_methods")
    )
    table = grid.table(grid.read(FOLDER / "results" / "grid.jsonl"))
    assert table == doc_tables.read_table(doc_tables.DEFAULTS, grid.TABLE)
    rows = methods.table(methods.read(FOLDER / "results" / "methods.jsonl")).split("\n| ")[1:]
    documented = doc_tables.read_table(doc_tables.METHODS, methods.TABLE).split("\n| ")[1:]
    assert rows == documented
