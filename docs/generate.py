"""Writes the parts of the documentation that come from the code: `make docs`.

Imports neither torch nor gradio. The tables of settings (settings.md) and methods (methods.md) come from
`TrainConfig` and `METHODS`, the endpoints (api.md) from the signatures and docstrings in
`peft_core/ui/api.py`.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from benchmarks.doc_tables import write_table
from peft_core.config import SETTINGS, TrainConfig
from peft_core.methods.registry import METHODS

DOCS = Path(__file__).resolve().parent
API = DOCS.parent / "peft_core" / "ui" / "api.py"
_PLACEMENT = ("target_modules", "top_layers")


def settings_table() -> str:
    """Return every setting with its label, default, allowed values and meaning."""
    types, defaults = get_type_hints(TrainConfig), TrainConfig().to_dict()
    lines = ["| Setting | Label | Default | Values | Meaning |", "|---|---|---|---|---|"]
    for name, setting in SETTINGS.items():
        meaning = _escape(" ".join([setting.help, *_reading_methods(name)]))
        cells = (f"`{name}`", setting.label, _value(defaults[name]), _values(name, types[name]), meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def methods_table() -> str:
    """Return every method with what it does, its own settings and defaults, and its source."""
    lines = [
        "| Method | Label | What it does | Settings | Own defaults | Source |",
        "|---|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        settings = ", ".join(f"`{setting}`" for setting in method.settings if setting not in _PLACEMENT)
        defaults = ", ".join(f"`{key}` {_value(value)}" for key, value in method.defaults.items())
        notes = [method.help, method.note]
        notes += [f"Cannot be merged: {method.cannot_merge}."] if method.cannot_merge else []
        cells = (f"`{name}`", method.label, " ".join(filter(None, notes)), settings, defaults, method.source)
        lines.append(f"| {' | '.join(map(_escape, cells))} |")
    return "\n".join(lines)


def endpoints_text() -> str:
    """Return every endpoint with its signature, description and arguments."""
    return "\n\n".join(_endpoint(function) for function in endpoints())


def endpoints() -> list[ast.FunctionDef]:
    """Return the public methods of the class `Endpoints`, each of which is registered under its name."""
    tree = ast.parse(API.read_text(encoding="utf-8"))
    (endpoints_class,) = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Endpoints"
    ]
    functions = [node for node in endpoints_class.body if isinstance(node, ast.FunctionDef)]
    return [function for function in functions if not function.name.startswith("_")]


def _endpoint(function: ast.FunctionDef) -> str:
    summary, arguments, returns = _docstring_parts(ast.get_docstring(function) or "")
    lines = [f"### `/{function.name}`", "", f"`{_signature(function)}`", "", *summary]
    lines += ["", *(f"- `{name}`: {text}" for name, text in arguments.items())] if arguments else []
    lines += ["", f"Returns: {returns}"] if returns else []
    return "\n".join(lines)


def _signature(function: ast.FunctionDef) -> str:
    arguments = function.args
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{function.name}({ast.unparse(arguments)}){returns}"


def _docstring_parts(docstring: str) -> tuple[list[str], dict[str, str], str]:
    """Return the description, the arguments by name, and what is returned, of a Google-style docstring."""
    description, _, returns = docstring.partition("\nReturns:\n")
    description, _, arguments = description.partition("\nArgs:\n")
    if not returns:
        arguments, _, returns = arguments.partition("\nReturns:\n")
    described = dict(_arguments(inspect.cleandoc(f"\n{arguments}")))
    return description.strip().splitlines(), described, " ".join(returns.split())


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    """Yield each argument with its description, whose further lines are indented."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if line[:1].strip():
            blocks.append([line])
        elif line.strip():
            blocks[-1].append(line.strip())
    for block in blocks:
        name, _, description = " ".join(block).partition(": ")
        yield name, description


def _reading_methods(setting: str) -> list[str]:
    """Return a sentence that names the methods that read a setting, if it belongs to methods."""
    labels = [method.label for method in METHODS.values() if setting in method.settings]
    if not labels or setting in _PLACEMENT:
        return []
    return [f"({', '.join(labels)})"]


def _values(name: str, annotation: Any) -> str:
    """Return the values that a setting takes."""
    setting, kinds = SETTINGS[name], {annotation, *get_args(annotation)}
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    if bool in kinds:
        return "`true`, `false`"
    if kinds & {int, float}:
        return setting.bounds()
    return "a list of names" if tuple in {getattr(kind, "__origin__", kind) for kind in kinds} else "text"


def _value(value: Any) -> str:
    """Return a default as JSON writes it; an empty one as a dash."""
    if value is None or value == []:
        return "–"
    if isinstance(value, list):
        return ", ".join(f"`{part}`" for part in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


GENERATED: Mapping[tuple[str, str], Any] = {
    ("settings.md", "settings"): settings_table,
    ("methods.md", "method list"): methods_table,
    ("api.md", "endpoints"): endpoints_text,
}


def main() -> None:
    """Replace every generated part."""
    for (document, name), make in GENERATED.items():
        write_table(DOCS / document, name, make())


if __name__ == "__main__":
    main()
