"""One component for each setting of TrainConfig, made from its type, label, help and choices."""

from typing import Any, get_args, get_type_hints

import gradio as gr

from peft_core.config import SETTINGS, TrainConfig

DEFAULTS = TrainConfig()
Form = dict[str, gr.components.Component]
_KINDS = get_type_hints(TrainConfig)
_CHOICES: dict[str, list[tuple[str, int]]] = {
    "load_in_bits": [("32, as they are", 32), ("8, quantised", 8), ("4, quantised", 4)]
}


def field(name: str, **options: Any) -> gr.components.Component:
    """A checkbox, a drop-down, a number or a text; `options` go to the component."""
    what, value = SETTINGS[name], getattr(DEFAULTS, name)
    shared = {"label": what.label, "info": what.help, "elem_id": name, **options}
    kinds = get_args(_KINDS[name]) or (_KINDS[name],)
    choices = _CHOICES.get(name) or list(what.choices)
    if bool in kinds:
        return gr.Checkbox(value, **shared)
    if choices:
        return gr.Dropdown(choices, value=value, **shared)
    if int in kinds or float in kinds:
        return gr.Number(value, **shared)
    return gr.Textbox(value or "", **shared)


def fields(form: Form, *rows: tuple[str, ...], **options: Any) -> None:
    """The settings of each row side by side, put into the form by their names."""
    for row in rows:
        with gr.Row():
            for name in row:
                form[name] = field(name, **options)
