"""The first card: which base model, how large it is, under which licence, and what of it starts untrained."""

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

from peft_core.config import SETTINGS
from peft_core.pictures.pieces import quantity
from peft_core.presets import MODELS
from peft_core.ui.fields import DEFAULTS, Form, field


def build_model_card(form: Form, *, free: bool) -> gr.HTML:
    """The picker and the revision; what comes back is the line that tells of the model."""
    form["model_name_or_path"] = gr.Dropdown(
        [(preset_label(name), name) for name in MODELS],
        value=DEFAULTS.model_name_or_path,
        label=SETTINGS["model_name_or_path"].label,
        info=SETTINGS["model_name_or_path"].help if free else "This public demo offers these.",
        allow_custom_value=free,
        elem_id="model_name_or_path",
    )
    facts = gr.HTML(elem_id="model-facts")
    form["revision"] = field("revision", visible=free)
    return facts


def preset_label(name: str) -> str:
    """What the picker shows: name, size and licence."""
    preset = MODELS[name]
    return " · ".join(filter(None, (preset.label, quantity(preset.parameters), preset.licence)))


def model_facts(name: str, facts: Mapping[str, Any]) -> str:
    """What a preset is good for or how large another model is, its length, and what starts untrained.

    `facts` are describe_model's.
    """
    preset = MODELS.get(name)
    first = preset.good_for if preset else f"{quantity(facts['parameters'])} parameters."
    untrained = _untrained(preset.untrained if preset else None, facts)
    rest = f"Reads up to {facts['max_length']:,} tokens. {untrained}"
    return f'<div class="facts"><p>{html.escape(first)}</p><p class="quiet">{html.escape(rest)}</p></div>'


def _untrained(known: tuple[str, ...] | None, facts: Mapping[str, Any]) -> str:
    """What starts untrained, as far as a model's configuration tells."""
    parts = ", ".join(known if known is not None else facts["head"])
    if facts["head_labels"]:
        names = ", ".join(facts["head_names"][:5]) + (", …" if facts["head_labels"] > 5 else "")
        return (
            f"Brings a head for {facts['head_labels']} labels ({names}); with other labels {parts} starts "
            "untrained."
        )
    return f"Starts untrained: {parts}."
