"""The cards of the form: what each model and method shows, offers, fills in and leaves out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from tiny import FAMILIES, make_tiny, tiny_config

import app
from peft_core.config import SETTINGS, TrainConfig
from peft_core.counts import describe_model
from peft_core.data.inspection import inspect
from peft_core.methods.registry import METHODS, defaults_of
from peft_core.models.presets import MODELS, RECOMMENDED_SETTINGS
from peft_core.service.workbench import Workbench
from peft_core.ui.compare import combinations, config_of, has_rank, join
from peft_core.ui.data_card import _inspect as inspect_data
from peft_core.ui.fields import field
from peft_core.ui.form import Cards, Form, build_form, fill, settings_of, summaries
from peft_core.ui.method_card import (
    OWN_SETTINGS,
    default_targets,
    method_choices,
    method_fields,
    method_line,
    method_values,
    not_offered,
    quick_targets,
    rate_for,
)
from peft_core.ui.model_card import model_facts, preset_label


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Form, Cards]]:
    workbench = Workbench.open(tmp_path_factory.mktemp("form") / "runs")
    with gr.Blocks():
        form, _, cards = build_form(workbench)
    yield form, cards
    workbench.worker.close()


def values(form: Form, **changes: Any) -> dict[Any, Any]:
    """What a handler gets when the fields hold the defaults but for some."""
    held = {component: component.value for component in form.values()}
    return {**held, **{form[name]: value for name, value in changes.items()}}


def test_the_form_as_it_opens_is_the_default(built: tuple[Form, Cards]) -> None:
    form, _ = built
    assert TrainConfig.from_dict(settings_of(form, values(form))) == TrainConfig()


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_that_a_method_reads_is_in_the_form_and_seen(
    method: str, built: tuple[Form, Cards]
) -> None:
    form, cards = built
    assert {*METHODS[method].settings} <= {*form}
    updates = method_fields(cards.method, form, method)
    seen = {name for name in (*OWN_SETTINGS, "target_modules") if updates[form[name]]["visible"]}
    assert seen == {*METHODS[method].settings}
    assert updates[cards.method.settings]["visible"] == bool(seen - {"target_modules"})
    assert updates[cards.method.quick]["visible"] == METHODS[method].takes_target_modules


@pytest.mark.parametrize("method", METHODS)
def test_a_chosen_method_brings_its_defaults(method: str, built: tuple[Form, Cards]) -> None:
    form, _ = built
    updates = {part: update["value"] for part, update in method_values(form, method, 3000).items()}
    held = {**values(form, method=method, learning_rate=0.5), **updates}
    config = TrainConfig.from_dict(settings_of(form, held))
    assert config == TrainConfig.from_dict({"method": method})
    assert config.learning_rate == defaults_of(method).get("learning_rate", 2e-3)


def test_lora_in_every_matrix_takes_half_the_rate_unless_one_was_chosen() -> None:
    assert TrainConfig.from_dict({"target_modules": ["all-linear"]}).learning_rate == 1e-3
    assert TrainConfig.from_dict({"target_modules": "all-linear"}).learning_rate == 1e-3
    assert rate_for("lora", ["all-linear"], 2e-3, 3000) == 1e-3
    assert rate_for("lora", ["query"], 1e-3, 3000) == 2e-3
    assert rate_for("lora", ["all-linear"], 5e-4, 3000) == 5e-4
    assert rate_for("adalora", ["all-linear"], 1e-2, 3000) == 1e-2
    assert rate_for("lora", ["all-linear"], 1e-3, 400) == 5e-4  # few rows take half of it


def test_a_method_begins_as_the_number_of_rows_wants(built: tuple[Form, Cards]) -> None:
    form, _ = built

    def begun(method: str, rows: int) -> tuple[float, int, float]:
        updates = method_values(form, method, rows)
        return tuple(updates[form[name]]["value"] for name in RECOMMENDED_SETTINGS)

    assert begun("lora", 3000) == begun("lora", 9000) == (2e-3, 16, 1.0)
    assert begun("lora", 1000) == (2e-3, 16, 3.0)
    assert begun("lora", 400) == (1e-3, 8, 10.0)
    assert begun("lora", 50) == (1e-3, 8, 16.0)
    assert begun("bitfit", 1000) == (2e-3, 16, 6.0)  # which learns slowly


def test_what_another_method_reads_is_left_at_its_default(built: tuple[Form, Cards]) -> None:
    form, _ = built
    settings = settings_of(form, values(form, method="head_only", r=None, lora_alpha=-1))
    assert TrainConfig.from_dict(settings).r == TrainConfig().r


@pytest.mark.parametrize(
    ("fields", "sheet_name", "header_row"),
    [
        ({"sheet_name": "Reviews", "header_row": 3}, "Reviews", 3),
        ({"sheet_name": "", "header_row": 0}, None, None),
        ({"sheet_name": "", "header_row": None}, None, None),
    ],
)
def test_form_carries_sheet_and_header_row(
    fields: dict[str, Any], sheet_name: str | None, header_row: int | None, built: tuple[Form, Cards]
) -> None:
    form, _ = built
    config = TrainConfig.from_dict(settings_of(form, values(form, **fields)))
    assert (config.sheet_name, config.header_row) == (sheet_name, header_row)


class InspectionOnly:
    """A workbench that inspects in this process."""

    limits = None

    def inspect(self, settings: dict[str, Any]) -> dict[str, Any]:
        return inspect(TrainConfig.from_dict(settings))


@pytest.mark.parametrize(
    ("name", "sheets", "row_can_be_chosen"),
    [
        ("second_sheet.xlsx", [("Guessed: Reviews", ""), ("About", "About"), ("Reviews", "Reviews")], True),
        ("one_bad_byte.csv", [("Guessed", "")], True),
        ("label_studio.json", [("Guessed", "")], False),
    ],
)
def test_data_card_offers_the_sheets_of_a_workbook(
    name: str, sheets: list[tuple[str, str]], row_can_be_chosen: bool, built: tuple[Form, Cards]
) -> None:
    form, cards = built
    path = str(Path(__file__).parent / "cases" / name)
    updates = inspect_data(cards.data, form, InspectionOnly(), values(form, dataset_name=path))
    assert updates[form["sheet_name"]]["choices"] == sheets
    assert updates[form["sheet_name"]]["visible"] == (len(sheets) > 1)
    assert updates[form["header_row"]]["visible"] == row_can_be_chosen
    assert path.rsplit("/", 1)[1] in updates[cards.data.facts]


def test_a_run_put_into_the_form_is_the_same_run(built: tuple[Form, Cards]) -> None:
    form, _ = built
    config = TrainConfig.from_dict(
        {"method": "lora", "r": 3, "target_modules": ["all-linear"], "learning_rate": 0.01}
    )
    choices = describe_model(config.model_name_or_path)["modules"]
    updates = {part: update["value"] for part, update in fill(form, config, choices).items()}
    assert TrainConfig.from_dict(settings_of(form, {**values(form), **updates})) == config


def test_an_impossible_method_is_not_offered_and_the_reason_is_told() -> None:
    offered = {name for _, name in method_choices("modernbert")}
    assert {"prefix_tuning", "bitfit"} == set(METHODS) - offered
    told = not_offered("modernbert")
    for name in ("prefix_tuning", "bitfit"):
        assert METHODS[name].label in told and METHODS[name].unsupported_reason("modernbert") in told
    assert set(METHODS) == {name for _, name in method_choices("bert")} and not not_offered("bert")


def test_a_method_says_what_it_does_where_it_is_from_and_that_it_cannot_merge() -> None:
    labels = {name: label for label, name in method_choices("bert")}
    assert labels["prompt_tuning"] == "Prompt tuning · virtual tokens · cannot merge"
    own_weights = [name for name, method in METHODS.items() if method.peft_config is None]
    assert [name for _, name in method_choices("bert")][-len(own_weights) :] == own_weights
    line = method_line("prompt_tuning")
    method = METHODS["prompt_tuning"]
    for words in (method.help, method.source, f"Cannot be merged: {method.cannot_merge}"):
        assert words in line
    assert METHODS["boft"].note in method_line("boft") and "merged" not in method_line("boft")


@pytest.mark.parametrize("name", MODELS)
def test_the_usual_modules_of_a_preset_are_its_own(name: str) -> None:
    modules = describe_model(name)["modules"]
    assert default_targets(name, modules) == list(MODELS[name].target_modules)
    # a folder with the same architecture and no preset gets the same ones
    assert default_targets("./folder", modules) == list(MODELS[name].target_modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_buttons_take_attention_or_everything(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    modules = describe_model(str(tmp_path))["modules"]
    attention = quick_targets("attention", str(tmp_path), modules)
    roles = {role for m in modules if m["name"] in attention for role in m["roles"]}
    assert roles and all(role.startswith("attention") for role in roles)
    assert quick_targets("all", str(tmp_path), modules) == ["all-linear"]
    assert {*quick_targets("usual", str(tmp_path), modules)} <= {*attention}


@pytest.mark.parametrize(
    "name, words",
    [
        ("nlptown/bert-base-multilingual-uncased-sentiment", "5 stars); with other labels classifier"),
        ("answerdotai/ModernBERT-base", "Reads up to 8,192 tokens. Starts untrained: classifier."),
        ("microsoft/deberta-v3-base", "Starts untrained: pooler, classifier."),
        ("FacebookAI/roberta-base", "a strong English default"),
    ],
)
def test_a_model_tells_its_use_its_length_and_what_starts_untrained(name: str, words: str) -> None:
    assert words in model_facts(name, describe_model(name))


def test_a_folder_tells_its_size(tmp_path: Path) -> None:
    told = model_facts(str(tmp_path), describe_model(str(make_tiny(tmp_path, "distilbert"))))
    assert "parameters. " not in told and "parameters.</p>" in told
    assert "Starts untrained: pre_classifier, classifier." in told


def test_the_picker_shows_size_and_licence_where_one_is_known() -> None:
    assert preset_label("google-bert/bert-base-cased") == "BERT base cased · 108.3 M · Apache-2.0"
    assert preset_label("microsoft/mpnet-base") == "MPNet base · 108.9 M"


def test_form_offers_the_best_step_and_reads_empty_fields_as_none(built: tuple[Form, Cards]) -> None:
    form, _ = built
    names = (
        "load_best_model_at_end", "metric_for_best_model", "early_stopping_patience",
        "early_stopping_threshold", "eval_steps", "gradient_accumulation_steps", "max_grad_norm",
        "label_smoothing_factor",
    )  # fmt: skip
    assert {*names} <= {*form}
    empty = TrainConfig.from_dict(
        settings_of(form, values(form, eval_steps=0, metric_for_best_model="", early_stopping_patience=2))
    )
    assert (empty.eval_steps, empty.metric_for_best_model, empty.early_stopping_patience) == (None, None, 2)
    updates = fill(form, TrainConfig(eval_steps=5, load_best_model_at_end=False), [])
    assert updates[form["eval_steps"]]["value"] == 5
    assert updates[form["metric_for_best_model"]]["value"] == ""
    assert updates[form["load_best_model_at_end"]]["value"] is False


@pytest.mark.parametrize("name", SETTINGS)
def test_a_field_is_made_from_its_setting(name: str) -> None:
    made, default = field(name), getattr(TrainConfig(), name)
    assert (made.label, made.info) == (SETTINGS[name].label, SETTINGS[name].help)
    if isinstance(default, bool):
        assert isinstance(made, gr.Checkbox)
    elif SETTINGS[name].choices:
        empty = [""] if name == "metric_for_best_model" else []
        assert [value for _, value in made.choices] == [*empty, *SETTINGS[name].choices]
    elif isinstance(default, int | float) and name != "load_in_bits":
        assert isinstance(made, gr.Number) and made.value == default


def test_the_line_of_the_method_card_is_that_of_the_method() -> None:
    assert summaries({"method": "full", "learning_rate": 5e-5})[2:] == [
        "3  Method    Full fine-tuning",
        "4  Training    1 epoch · rate 5e-05 · seed 42",
    ]


def test_only_what_a_method_reads_multiplies_its_rows() -> None:
    asked = combinations(["google-bert/bert-base-cased"], list(METHODS), [1, 8], ["query", "query,value"], 2)
    for name, method in METHODS.items():
        expected = (2 if has_rank(name) else 1) * (2 if method.takes_target_modules else 1)
        assert sum(one["method"] == name for one in asked) == expected, name


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_the_comparison_becomes_the_settings_it_was_counted_for(method: str) -> None:
    asked = combinations(["google-bert/bert-base-cased"], [method], [4], ["key"], 5)
    settings = [TrainConfig.from_dict(one).to_dict() for one in asked]
    (row,), refused = join(settings, [{"trainable": 1}])
    assert config_of(row) == TrainConfig.from_dict({**settings[0], "num_labels": None})
    assert (row["r"], row["targets"]) == (
        4 if has_rank(method) else None,
        "key" if METHODS[method].takes_target_modules else "",
    )
    assert not refused


def test_class_weights_that_change_have_the_data_looked_at_anew() -> None:
    # else a look under way when they are balanced would bring the button back that balances them
    page = app.demo.config
    ids = {one["props"].get("elem_id"): one["id"] for one in page["components"]}
    looks = [one for one in page["dependencies"] if ids["balance"] in one["outputs"]]
    assert any((ids["class_weight"], "change") in map(tuple, look["targets"]) for look in looks)
