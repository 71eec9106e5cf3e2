"""Measure names, types, sizes, calls by string and private upstream names against their limits.

`make house` prints the table; `tests/integration/test_house.py` fails if a limit that is met is exceeded.
"""

import argparse
import ast
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "peft_core"
PLACEHOLDERS = frozenset(
    ["found", "told", "held", "heard", "shown", "given", "seen", "looked", "stands", "one", "some", "few"]
)  # names that do not describe their contents
LOOSE_MAPPING = re.compile(r"\b(?:dict|Mapping)\[str, Any\]")
CALL_BY_STRING = re.compile(r"\.(?:run|stream)\(\s*\"[a-z_]+\"")
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Bar:
    """A measured number and its upper limit."""

    name: str
    measured: float
    limit: float

    @property
    def is_met(self) -> bool:
        return self.measured <= self.limit


def sources() -> list[Path]:
    """Every Python file of the app."""
    return [ROOT / "app.py", *sorted(CORE.rglob("*.py"))]


def assigned_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield variables, arguments and definitions with their lines, without those of comprehensions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*_COMPREHENSIONS, ast.Lambda)):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        yield from assigned_names(node)


def placeholder_names(path: Path) -> list[str]:
    """Return `name (file:line)` for each assigned name of a file that is a placeholder."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{name} ({path.relative_to(ROOT)}:{line})"
        for name, line in assigned_names(tree)
        if name.strip("_") in PLACEHOLDERS
    ]


def function_lines(path: Path) -> dict[str, int]:
    """Return the number of lines of each function of a file, docstring included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def private_upstream_names() -> list[str]:
    """Return `name (file:line)` for each private attribute or import that no file of the project defines."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources()}
    own = set().union(*map(_defined_names, trees.values()))
    return [
        f"{name} ({path.relative_to(ROOT)}:{line})"
        for path, tree in trees.items()
        if "compat" not in path.parts
        for name, line in _private_names(tree)
        if name not in own
    ]


def _defined_names(tree: ast.AST) -> set[str]:
    names = {name for name, _ in assigned_names(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def _private_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-zA-Z]", node.attr) and not _is_os(node.value):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("peft_core"):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            for part in parts:
                if re.match(r"_[a-zA-Z]", part):
                    yield part, node.lineno


def _is_os(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "os"  # os._exit is documented


def count_matches(pattern: re.Pattern[str]) -> int:
    """Return how often a pattern occurs in the app's code."""
    return sum(len(pattern.findall(path.read_text(encoding="utf-8"))) for path in sources())


def type_errors() -> int:
    """Return the number of errors of pyright (standard) over the app."""
    command = [str(Path(sys.executable).with_name("basedpyright")), "--outputjson"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return json.loads(output)["summary"]["errorCount"]


def bars(*, with_types: bool = True) -> list[Bar]:
    """Return all measurements; the type check takes a minute."""
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    core_lines = sum(lines for path, lines in files.items() if path != ROOT / "app.py")
    script = sum(lines for path, lines in files.items() if CORE / "export" / "script" in path.parents)
    functions = sorted(lines for path in sources() for lines in function_lines(path).values())
    readme = len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    names = sum(len(placeholder_names(path)) for path in sources())
    measured = [
        Bar("placeholder names", names, 0),
        Bar(
            "dict[str, Any] per 1,000 lines of peft_core", 1000 * count_matches(LOOSE_MAPPING) / core_lines, 2
        ),
        Bar("calls by string", count_matches(CALL_BY_STRING), 0),
        Bar("private upstream names outside compat/", len(private_upstream_names()), 0),
        Bar("modules at the root of peft_core", len(list(CORE.glob("*.py"))) - 1, 10),
        Bar("script export, lines", script, 450),
        Bar("README lines", readme, 150),
        Bar("function lines, median", statistics.median(functions), 7),
        Bar("function lines, 90th percentile", functions[int(0.9 * len(functions))], 20),
        Bar("function lines, longest", functions[-1], 60),
        Bar("longest file, lines", max(files.values()), 400),
    ]
    return [*measured, Bar("pyright errors (standard)", type_errors(), 0)] if with_types else measured


def main() -> int:
    """Print the table; return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--without-types", action="store_true", help="leave out pyright, which takes a minute"
    )
    measured = bars(with_types=not parser.parse_args().without_types)
    for bar in measured:
        print(f"{bar.name:45} {bar.measured:8g}  bar {bar.limit:4g}  {'met' if bar.is_met else 'MISSED'}")
    return int(not all(bar.is_met for bar in measured))


if __name__ == "__main__":
    sys.exit(main())
