"""The house plan holds: who imports what, in which direction, and the versions that are pinned."""

import ast
import sys
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import house
import pytest
from packaging.requirements import Requirement
from processes import ROOT, answer

CORE = ROOT / "peft_core"
ALONE = "@pytest.mark." + "alone"  # in two parts, since this file is looked through too
HEAVY = {"torch", "transformers", "peft"}
NOT_YET_MET = {
    "dict[str, Any] per 1,000 lines of peft_core",
    "script export, lines",
}
LIGHT = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
heavy = {"torch", "transformers", "peft", "datasets", "openpyxl", "peft_core.data.files"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return every module that a file imports at run time, wherever in the file."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


SOURCES = {module_name(path): path for path in (*CORE.rglob("*.py"), ROOT / "app.py")}
INSIDE = {
    name: sorted((imports(path) & set(SOURCES)) - {name, "peft_core"}) for name, path in SOURCES.items()
}


def reached(name: str) -> set[str]:
    """The project's modules that a module imports, and those that they import."""
    found, todo = set(), [name]
    while todo:
        new = set(INSIDE[todo.pop()]) - found
        found |= new
        todo += new
    return found


def uses(name: str, packages: set[str]) -> bool:
    return any(module.split(".")[0] in packages for module in imports(SOURCES[name]))


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_downwards(name: str) -> None:
    assert name not in reached(name), "a module is reached from itself"
    if name != "app":
        assert "app" not in reached(name)
    if not name.startswith(("app", "peft_core.cli", "peft_core.ui")):
        assert not [module for module in reached(name) if module.startswith("peft_core.ui")]


def test_only_the_page_knows_gradio() -> None:
    knows = [name for name in SOURCES if uses(name, {"gradio", "gradio_client"})]
    assert "peft_core.ui.page" in knows
    assert all(name.startswith(("app", "peft_core.ui")) for name in knows)


def test_the_foundation_stands_alone() -> None:
    assert reached("peft_core.config") == {
        "peft_core.errors",
        "peft_core.methods.registry",
        "peft_core.setting",
    }
    assert reached("peft_core.errors") == set()
    foundation = {
        "config",
        "errors",
        "files",
        "files.atomic",
        "files.hashing",
        "files.manifests",
        "files.process_identity",
        "files.records",
        "methods.registry",
        "setting",
    }
    assert reached("peft_core.files.atomic") == {"peft_core.errors", "peft_core.files.process_identity"}
    assert {name for name in reached("peft_core.runs") if not name.startswith("peft_core.runs.")} == {
        f"peft_core.{name}" for name in foundation
    }


@pytest.mark.parametrize("bar", house.bars(with_types=False), ids=lambda bar: bar.name)
def test_code_meets_bar(bar: house.Bar) -> None:
    if bar.name in NOT_YET_MET:
        assert not bar.is_met, f"{bar.name} meets its bar: remove it from NOT_YET_MET"
    else:
        assert bar.is_met, f"{bar.name}: {bar.measured:g}, at most {bar.limit:g}"


def test_placeholder_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "ROOT", tmp_path)
    source = tmp_path / "module.py"
    source.write_text(
        "def held(one):\n    told = [found for found in one]\n    return told\n", encoding="utf-8"
    )
    assert house.placeholder_names(source) == [
        "held (module.py:1)",
        "one (module.py:1)",
        "told (module.py:2)",
    ]


def test_the_page_reaches_no_module_that_computes() -> None:
    computes = {name for name in SOURCES if uses(name, HEAVY)}
    assert {"peft_core.training.entry", "peft_core.models.encoder", "peft_core.inference.loading"} <= computes
    assert not computes & reached("app")


@pytest.mark.parametrize("name", ["app", "peft_core.ui.page", "peft_core.service.workbench"])
def test_the_page_starts_without_what_computes_and_what_reads_files(name: str) -> None:
    assert answer(LIGHT, name) == []


def test_python_api_imports_when_used() -> None:
    code = (
        "import json, sys, peft_core; light = 'torch' not in sys.modules;"
        "names = {name: callable(getattr(peft_core, name)) for name in peft_core.__all__};"
        "print(json.dumps([light, names, hasattr(peft_core, 'trains')]))"
    )
    api = ["Predictor", "Run", "TrainConfig", "count_parameters", "create_run", "merge", "train"]
    assert answer(code) == [True, dict.fromkeys(api, True), False]


def test_the_core_starts_without_gradio() -> None:
    heavy = "peft_core.service.tasks, peft_core.training.entry, peft_core.export.archives"
    code = f"import sys, {heavy}; print(int('gradio' in sys.modules))"
    assert answer(code) == 0


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_starts_with_a_sentence_and_can_be_read_in_one_sitting(name: str) -> None:
    text = SOURCES[name].read_text(encoding="utf-8")
    sentence = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    assert sentence.endswith(".")
    assert len(text.splitlines()) <= 400


@pytest.mark.parametrize("name", ["requirements.txt", "tests/requirements.txt"])
def test_installed_versions_are_the_pinned_ones(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith(("-", "#"))]
    assert wanted
    for requirement in wanted:
        found = version(requirement.name)
        assert requirement.specifier.contains(found), f"{requirement} is asked for, {found} is installed"
        exact = [part.operator for part in requirement.specifier] == ["=="]
        assert exact or requirement.name == "torch"


def test_what_the_code_imports_is_asked_for() -> None:
    """By requirements.txt itself, or by a package named there."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = {Requirement(line).name.lower().replace("-", "_") for line in lines if line}
    behind = {
        Requirement(line).name.lower().replace("-", "_") for name in asked for line in requires(name) or []
    }
    named = {module.split(".")[0] for path in SOURCES.values() for module in imports(path)}
    third_party = named - set(sys.stdlib_module_names) - {"peft_core", "app"}
    packages = packages_distributions()  # protobuf is imported as google
    for module in third_party:
        sold_as = {name.lower().replace("-", "_") for name in packages.get(module, [module])}
        assert sold_as & (asked | behind), f"{module} is imported, but not asked for"


def test_every_test_that_must_run_alone_lies_in_a_file_that_make_runs() -> None:
    marked = {path.name for path in (ROOT / "tests").rglob("test_*.py") if ALONE in path.read_text("utf-8")}
    (line,) = [line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if "-m alone" in line]
    assert {Path(word).name for word in line.split() if word.endswith(".py")} == marked
