"""The first card of the form: the base model, its size and license, and which weights start untrained."""

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

from peft_core.config import SETTINGS
from peft_core.models.presets import MODELS
from peft_core.ui.fields import DEFAULTS, Form, field
from peft_core.views.components import quantity


def build_model_card(form: Form, *, allow_custom: bool) -> gr.HTML:
    """Build the model picker and the revision; return the component that describes the model.

    Args:
        form: gets the two fields.
        allow_custom: whether models other than the presets can be entered.
    """
    form["model_name_or_path"] = gr.Dropdown(
        [(preset_label(name), name) for name in MODELS],
        value=DEFAULTS.model_name_or_path,
        label=SETTINGS["model_name_or_path"].label,
        info=SETTINGS["model_name_or_path"].help if allow_custom else "This public demo offers these.",
        allow_custom_value=allow_custom,
        elem_id="model_name_or_path",
    )
    facts = gr.HTML(elem_id="model-facts")
    form["revision"] = field("revision", visible=allow_custom)
    return facts


def preset_label(name: str) -> str:
    """Return the picker's label of a preset: name, size and license."""
    preset = MODELS[name]
    return " · ".join(filter(None, (preset.label, quantity(preset.parameters), preset.license)))


def model_facts(name: str, facts: Mapping[str, Any]) -> str:
    """Return HTML with a preset's purpose (or a model's size), its max length, and what starts untrained.

    `facts` come from `describe_model`.
    """
    preset = MODELS.get(name)
    first = preset.description if preset else f"{quantity(facts['parameters'])} parameters."
    untrained = _untrained(preset.untrained if preset else None, facts)
    rest = f"Reads up to {facts['max_length']:,} tokens. {untrained}"
    return f'<div class="facts"><p>{html.escape(first)}</p><p class="quiet">{html.escape(rest)}</p></div>'


def _untrained(preset_parts: tuple[str, ...] | None, facts: Mapping[str, Any]) -> str:
    """Return a sentence on what starts untrained, from the preset or the model's configuration."""
    parts = ", ".join(preset_parts if preset_parts is not None else facts["head"])
    if facts["head_labels"]:
        names = ", ".join(facts["head_names"][:5]) + (", …" if facts["head_labels"] > 5 else "")
        return (
            f"Has a head for {facts['head_labels']} labels ({names}); with other labels {parts} starts "
            "untrained."
        )
    return f"Starts untrained: {parts}."
