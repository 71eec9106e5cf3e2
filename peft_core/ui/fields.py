"""Form components for the settings of TrainConfig, built from their type, label, help and choices."""

from typing import Any, get_args, get_type_hints

import gradio as gr

from peft_core.config import SETTINGS, TrainConfig
from peft_core.problem_types import TITLES

DEFAULTS = TrainConfig()
Field = gr.Checkbox | gr.CheckboxGroup | gr.Dropdown | gr.Number | gr.Textbox
Form = dict[str, Field]  # by the name of the setting
_KINDS = get_type_hints(TrainConfig)
_CHOICES: dict[str, list[tuple[str, int]] | list[tuple[str, str]]] = {
    "load_in_bits": [("32, not quantized", 32), ("8, quantized", 8), ("4, quantized", 4)],
    "metric_for_best_model": [
        ("First metric of the problem type", ""),
        *((TITLES.get(name, name), name) for name in SETTINGS["metric_for_best_model"].choices),
    ],
}


def field(name: str, **options: Any) -> Field:
    """Return the component of a setting; `options` are passed to its constructor."""
    setting, default = SETTINGS[name], getattr(DEFAULTS, name)
    shared = {"label": setting.label, "info": setting.help, "elem_id": name, **options}
    kinds = get_args(_KINDS[name]) or (_KINDS[name],)
    choices = _CHOICES.get(name) or list(setting.choices)
    if bool in kinds:
        return gr.Checkbox(default, **shared)
    if isinstance(default, tuple):
        return gr.CheckboxGroup(choices, value=list(default), **shared)
    if choices:
        return gr.Dropdown(choices, value="" if default is None and name in _CHOICES else default, **shared)
    if int in kinds or float in kinds:
        return gr.Number(default, **shared)
    return gr.Textbox(default or "", **shared)


def fields(form: Form, *rows: tuple[str, ...], **options: Any) -> None:
    """Build the components of each row side by side and add them to the form."""
    for row in rows:
        with gr.Row():
            for name in row:
                form[name] = field(name, **options)
