"""The command `peft-workbench`: serve the page, or train, merge, predict and count without it.

Modules that import torch or gradio are imported by the commands that need them.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.errors import ConfigError, PeftCoreError
from peft_core.runs import Run

PROGRAM = "peft-workbench"
_SETTINGS_HELP = "settings such as r=16 or learning_rate=0.002; a list is written as JSON"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 after one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["serve"]:
        return _serve(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        answer = options.command(options)
    except PeftCoreError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(answer, indent=2, ensure_ascii=False) if options.json else _format(answer))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Fine-tune, compare and try PEFT adapters.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("serve", help=f"serve the page; {PROGRAM} serve --help lists its options")
    add = _add_command(commands, "train", _train, "train a run and wait for its end")
    add("settings", nargs="*", metavar="SETTING=VALUE", help=_SETTINGS_HELP)
    add("--config", type=Path, metavar="FILE", help="a JSON file of settings, such as a run's config.json")
    add = _add_command(commands, "count", _count, "count parameters exactly, without reading weights")
    add("settings", nargs="*", metavar="SETTING=VALUE", help=_SETTINGS_HELP)
    add("--config", type=Path, metavar="FILE", help="a JSON file of settings")
    add = _add_command(commands, "runs", _runs, "list the runs, the newest first")
    add = _add_command(commands, "merge", _merge, "merge a run's adapter into its base model")
    add("run", metavar="RUN", help="a run's id")
    add = _add_command(commands, "predict", _predict, "predict texts with a run's model")
    add("run", metavar="RUN", help="a run's id")
    add("texts", nargs="+", metavar="TEXT")
    add("--variant", choices=("adapter", "merged", "base"), default="adapter")
    return parser


def _add_command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], Any], description: str
) -> Callable[..., argparse.Action]:
    parser = commands.add_parser(name, help=description, description=description)
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    default = Path(os.environ.get("RUNS_DIR", "runs"))
    parser.add_argument("--runs-dir", type=Path, default=default, metavar="DIR")
    return parser.add_argument


def _serve(arguments: Sequence[str]) -> int:
    from peft_core.ui.options import read_options  # noqa: PLC0415 - see the module docstring
    from peft_core.ui.server import open_app, serve  # noqa: PLC0415

    options = read_options(arguments, os.environ, program=f"{PROGRAM} serve")
    serve(options, *open_app(options))
    return 0


def _train(options: argparse.Namespace) -> dict[str, Any]:
    from peft_core.training.entry import train  # noqa: PLC0415

    run = runs.create(options.runs_dir, _config(options))
    print(f"Training {run.run_id}", file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):  # Trainer prints its losses
        train(run.folder)
    result = run.result()
    return {"run_id": run.run_id, "status": run.state().status, "result": result and result.to_dict()}


def _count(options: argparse.Namespace) -> dict[str, Any]:
    from peft_core.counts import count_parameters  # noqa: PLC0415

    return count_parameters(_config(options)).to_dict()


def _runs(options: argparse.Namespace) -> list[dict[str, Any]]:
    states = [(run, run.state()) for run in runs.list_runs(options.runs_dir)]
    return [{"run_id": run.run_id, "status": state.status, "error": state.error} for run, state in states]


def _merge(options: argparse.Namespace) -> dict[str, Any]:
    from peft_core.merging.merge import merge  # noqa: PLC0415

    return merge(_run(options).folder).to_dict()


def _predict(options: argparse.Namespace) -> list[dict[str, Any]]:
    from peft_core.inference.predictor import Predictor  # noqa: PLC0415

    predictor = Predictor(_run(options).folder, options.variant)
    predictions = predictor.predict(options.texts)
    return [
        {"text": text, **prediction.to_dict()}
        for text, prediction in zip(options.texts, predictions, strict=True)
    ]


def _run(options: argparse.Namespace) -> Run:
    return runs.find(options.runs_dir, options.run)


def _config(options: argparse.Namespace) -> TrainConfig:
    settings: dict[str, Any] = {}
    if options.config is not None:
        try:
            settings = json.loads(options.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"--config {options.config} cannot be read: {error}.") from error
        if not isinstance(settings, dict):
            raise ConfigError(f"--config {options.config} contains no JSON object of settings.")
        settings.pop("schema_version", None)  # of a run's config.json
    for assignment in options.settings:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} is not SETTING=VALUE; write for example r=16.")
        settings[name] = _parse(text)
    return TrainConfig.from_dict(settings)


def _parse(text: str) -> Any:
    """Return a value as JSON reads it, or as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _format(answer: Any) -> str:
    """Return an answer as lines of `name: value`, with an empty line between the items of a list."""
    if isinstance(answer, list):
        return "\n\n".join(map(_format, answer)) if answer else "none"
    return "\n".join(f"{name}: {_format_value(value)}" for name, value in answer.items() if value is not None)


def _format_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
