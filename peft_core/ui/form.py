"""The form: one component for each setting of TrainConfig, in four numbered cards."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from peft_core.config import LR_SCHEDULERS, SETTINGS, TrainConfig
from peft_core.errors import PeftCoreError
from peft_core.pictures import cost, lora_picture, message, quantity
from peft_core.presets import MODELS, RECIPES
from peft_core.ui.data_card import GUESSED, build_data_card, dataset_label, wire_data_card
from peft_core.ui.events import PRIVATE
from peft_core.workbench import Workbench

DEFAULTS = TrainConfig()
Form = dict[str, gr.components.Component]


def build_form(workbench: Workbench) -> tuple[Form, gr.Radio, list[gr.Accordion]]:
    """Four cards; what comes back are the fields by their setting's name, the recipes and the cards."""
    free = workbench.limits is None
    recipe = gr.Radio(list(RECIPES), value=next(iter(RECIPES)), label="Start from", elem_id="recipe")
    form: Form = {}
    with gr.Accordion(open=False, elem_classes="card") as model:
        form["model_name_or_path"] = _choice("model_name_or_path", MODELS, free)
        form["revision"] = _text("revision", visible=free)
    with gr.Accordion(open=False, elem_classes="card") as data:
        data_card = build_data_card(form, workbench)
    with gr.Accordion(open=False, elem_classes="card") as method:
        _pairs(form, _number, ("r", "lora_alpha"))
        form["lora_dropout"] = _number("lora_dropout")
        form["target_modules"] = gr.CheckboxGroup(
            list(DEFAULTS.target_modules),
            value=list(DEFAULTS.target_modules),
            label=SETTINGS["target_modules"].label,
            info=SETTINGS["target_modules"].help,
            elem_id="target_modules",
        )
    with gr.Accordion(open=False, elem_classes="card") as training:
        _pairs(
            form,
            _number,
            ("learning_rate", "num_train_epochs"),
            ("per_device_train_batch_size", "max_length"),
        )
        _pairs(form, _number, ("warmup_steps", "weight_decay"))
        form["lr_scheduler_type"] = gr.Dropdown(
            list(LR_SCHEDULERS), value=DEFAULTS.lr_scheduler_type, label=SETTINGS["lr_scheduler_type"].label
        )
        form["seed"] = _number("seed")
    cards = [model, data, method, training]
    for card, label in zip(cards, summaries(DEFAULTS.to_dict()), strict=True):
        card.label = label
    wire_data_card(data_card, form, data, workbench)
    return form, recipe, cards


def settings_of(form: Form, values: Mapping[Any, Any]) -> dict[str, Any]:
    """The settings by name, from what a handler with `inputs={...}` gets."""
    named = {name: values[component] for name, component in form.items()}
    named["num_labels"] = named["num_labels"] or None  # an empty number field reads 0
    return named


def fill(form: Form, config: TrainConfig, choices: list[dict[str, Any]]) -> dict[Any, Any]:
    """Updates that put a config into the form."""
    updates: dict[Any, Any] = {
        form[name]: gr.update(value="" if value is None and name in GUESSED else value)
        for name, value in config.to_dict().items()
        if name in form
    }
    updates[form["target_modules"]] = gr.update(
        choices=_choice_pairs(choices),
        value=[m for m in config.target_modules if m in {c["name"] for c in choices}],
    )
    return updates


def summaries(settings: Mapping[str, Any], total: int | None = None) -> list[str]:
    """A line for each card, read while it is closed."""
    s = {**DEFAULTS.to_dict(), **settings}
    model = (
        MODELS[s["model_name_or_path"]].label
        if s["model_name_or_path"] in MODELS
        else s["model_name_or_path"]
    )
    data = dataset_label(s["dataset_name"])
    size = f" · {quantity(total)}" if total else ""
    return [
        f"1  Model    {model}{size}",
        f"2  Data    {data} · {s['max_train_samples']:,} rows",
        f"3  Method    LoRA r {s['r']} · {' '.join(s['target_modules'])}",
        f"4  Training    {_epochs(s['num_train_epochs'])} · rate {s['learning_rate']:g} · seed {s['seed']}",
    ]


def wire_form(
    page: gr.Blocks,
    workbench: Workbench,
    form: Form,
    recipe: gr.Radio,
    cards: list[gr.Accordion],
    strip: gr.HTML,
    picture: gr.HTML,
) -> None:
    """Every change updates cost strip, picture and the cards' lines; a model brings its own modules."""

    def show_cost(values: dict) -> list[Any]:
        settings = settings_of(form, values)
        try:
            config = workbench.config(settings)
            counted = workbench.cost(config.to_dict())
            drawn = lora_picture(config.r, config.lora_alpha, *_first_target(workbench, config))
        except PeftCoreError as error:
            return [message(str(error)), gr.skip(), *[gr.skip()] * len(cards)]
        lines = summaries(config.to_dict(), _base_size(counted))
        return [cost(counted), drawn, *[gr.update(label=line) for line in lines]]

    def offer_modules(name: str, chosen: list[str]) -> Any:
        try:
            workbench.config({"model_name_or_path": name})
            choices = workbench.worker.run("module_choices", name)
        except PeftCoreError:
            return gr.skip()
        names = [choice["name"] for choice in choices]
        wanted = MODELS[name].target_modules if name in MODELS else ("query", "value")
        kept = [m for m in chosen if m in names] or [m for m in wanted if m in names] or names[:1]
        return gr.update(choices=_choice_pairs(choices), value=kept)

    def take_recipe(name: str) -> dict[Any, Any]:
        config = TrainConfig.from_dict(RECIPES[name])
        return fill(form, config, workbench.worker.run("module_choices", config.model_name_or_path))

    fields = list(form.values())
    outputs = [strip, picture, *cards]
    changes = [page.load, *[field.change for field in fields]]
    gr.on(changes, show_cost, set(fields), outputs, trigger_mode="always_last", **PRIVATE)
    model, modules = form["model_name_or_path"], form["target_modules"]
    gr.on([page.load, model.change], offer_modules, [model, modules], modules, **PRIVATE)
    recipe.input(take_recipe, recipe, fields, **PRIVATE)


def _first_target(workbench: Workbench, config: TrainConfig) -> tuple[str, list[int]]:
    """The first chosen module's name and weight shape (out, in), for the picture."""
    choices = workbench.worker.run("module_choices", config.model_name_or_path, config.revision)
    name = config.target_modules[0]
    shape = next((c["shape"] for c in choices if c["name"] == name), choices[0]["shape"])
    return name, shape


def _choice_pairs(choices: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(choice["label"], choice["name"]) for choice in choices]


def _choice(name: str, presets: Mapping[str, Any], free: bool) -> gr.Dropdown:
    pairs = [(preset.label, key) for key, preset in presets.items()]
    info = SETTINGS[name].help if free else "This public demo offers these."
    return gr.Dropdown(
        pairs,
        value=getattr(DEFAULTS, name),
        label=SETTINGS[name].label,
        info=info,
        allow_custom_value=free,
        elem_id=name,
    )


def _number(name: str) -> gr.Number:
    value = getattr(DEFAULTS, name)
    return gr.Number(value, label=SETTINGS[name].label, info=SETTINGS[name].help, elem_id=name)


def _text(name: str, visible: bool = True) -> gr.Textbox:
    value = getattr(DEFAULTS, name) or ""
    return gr.Textbox(
        value, label=SETTINGS[name].label, info=SETTINGS[name].help, elem_id=name, visible=visible
    )


def _pairs(form: Form, make: Any, *pairs: tuple[str, str]) -> None:
    """Two fields a row."""
    for pair in pairs:
        with gr.Row():
            for name in pair:
                form[name] = make(name)


def _base_size(counted: Mapping[str, Any]) -> int:
    """Parameters of the base model and its head, without what the method adds."""
    return counted["total"] - counted["adapter"] - counted["head_copy"]


def _epochs(number: float) -> str:
    return f"{number:g} epoch" + ("s" if number != 1 else "")
