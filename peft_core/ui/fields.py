"""One component for each setting of TrainConfig, made from its type, label, help and choices."""

from typing import Any, get_args, get_type_hints

import gradio as gr

from peft_core.config import SETTINGS, TrainConfig
from peft_core.problems import TITLES

DEFAULTS = TrainConfig()
Form = dict[str, gr.components.Component]
_KINDS = get_type_hints(TrainConfig)
_CHOICES: dict[str, list[tuple[str, int]] | list[tuple[str, str]]] = {
    "load_in_bits": [("32, as they are", 32), ("8, quantised", 8), ("4, quantised", 4)],
    "metric_for_best_model": [
        ("The task's first metric", ""),
        *((TITLES.get(name, name), name) for name in SETTINGS["metric_for_best_model"].choices),
    ],
}


def field(name: str, **options: Any) -> gr.components.Component:
    """A checkbox, several of them, a drop-down, a number or a text; `options` go to the component."""
    what, value = SETTINGS[name], getattr(DEFAULTS, name)
    shared = {"label": what.label, "info": what.help, "elem_id": name, **options}
    kinds = get_args(_KINDS[name]) or (_KINDS[name],)
    choices = _CHOICES.get(name) or list(what.choices)
    if bool in kinds:
        return gr.Checkbox(value, **shared)
    if isinstance(value, tuple):
        return gr.CheckboxGroup(choices, value=list(value), **shared)
    if choices:
        return gr.Dropdown(choices, value="" if value is None and name in _CHOICES else value, **shared)
    if int in kinds or float in kinds:
        return gr.Number(value, **shared)
    return gr.Textbox(value or "", **shared)


def fields(form: Form, *rows: tuple[str, ...], **options: Any) -> None:
    """The settings of each row side by side, put into the form by their names."""
    for row in rows:
        with gr.Row():
            for name in row:
                form[name] = field(name, **options)
