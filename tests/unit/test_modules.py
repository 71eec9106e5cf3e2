"""Target modules: their roles, costs and traps, and that PEFT wraps them on every family."""

from collections.abc import Iterator

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from tiny import FAMILIES, tiny_config
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from peft_core.errors import ModelError
from peft_core.models.encoder import meta_model, model_config
from peft_core.models.modules import (
    ALL_LINEAR,
    ROLES,
    all_linear,
    check_target_modules,
    expand_target_modules,
    feedforward_modules,
    head_modules,
    layer_norms,
    linear_modules,
)
from peft_core.models.presets import MODELS

HEADS = {
    "bert": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "deberta-v2": ("pooler", "classifier"),
    "modernbert": ("head", "classifier"),
}
# models of proteins, images or layouts, whose default settings do not suit text
NOT_FOR_TEXT = {"esm", "esmc", "perceiver", "modernvbert", "ultravbert", "layoutlm", "tapas", "ultrabert"}
ENCODERS = sorted(
    {*MODEL_FOR_MASKED_LM_MAPPING_NAMES} & {*MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES} - NOT_FOR_TEXT
)


def tiny(family: str) -> nn.Module:
    return meta_model(tiny_config(family), 2)


def lora(model: nn.Module, names: tuple[str, ...] | list[str]) -> PeftModel:
    return get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=1, target_modules=list(names)))


def wrapped(model: nn.Module, mark: str = "lora_A") -> list[str]:
    """Return the paths of the wrapped modules in the base model."""
    prefix = "base_model.model."
    return [path.removeprefix(prefix) for path, module in model.named_modules() if hasattr(module, mark)]


def encoder_linears(model: nn.Module) -> Iterator[str]:
    """Yield the linear modules of the encoder without its pooler, by an independent rule."""
    for path, module in model.named_modules():
        inside = path.startswith(f"{model.base_model_prefix}.") and "pooler" not in path
        if isinstance(module, nn.Linear) and inside:
            yield path


def test_linear_modules_of_bert_are_ordered_with_their_cost() -> None:
    choices = [(c.name, c.roles, c.matches, c.shapes, c.rank_cost) for c in linear_modules(tiny("bert"))]
    assert choices == [
        ("query", ("attention query",), 2, ((32, 32),), 128),
        ("key", ("attention key",), 2, ((32, 32),), 128),
        ("value", ("attention value",), 2, ((32, 32),), 128),
        ("attention.output.dense", ("attention output",), 2, ((32, 32),), 128),
        ("intermediate.dense", ("MLP in",), 2, ((64, 32),), 192),
        ("output.dense", ("attention output", "MLP out"), 4, ((32, 32), (32, 64)), 320),
        ("pooler.dense", ("pooler",), 1, ((32, 32),), 64),
    ]


@pytest.mark.parametrize(
    "family, names",
    [
        ("distilbert", {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"}),
        ("modernbert", {"Wqkv", "attn.Wo", "Wi", "mlp.Wo"}),
        ("mpnet", {"q", "k", "v", "o", "intermediate.dense", "output.dense"}),
        (
            "deberta-v2",
            {
                "query_proj",
                "key_proj",
                "value_proj",
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            },
        ),
        (
            "albert",
            {"query", "key", "value", "dense", "ffn", "ffn_output", "embedding_hidden_mapping_in", "pooler"},
        ),
    ],
)
def test_linear_modules_of_family_have_known_names_and_roles(family: str, names: set[str]) -> None:
    choices = linear_modules(tiny(family))
    assert {choice.name for choice in choices} == names
    assert not any("other" in choice.roles for choice in choices)


@pytest.mark.parametrize(
    "family, name, words",
    [
        ("modernbert", "mlp.Wo", "Wo alone would match attention output and MLP out"),
        ("albert", "query", "one matrix serves 2 layers"),
        ("bert", "pooler.dense", "Used by this head only"),
        ("bert", "output.dense", "matches both"),
        ("bert", "query", ""),
        ("mpnet", "output.dense", ""),
    ],
)
def test_module_choice_label_warns_of_its_trap(family: str, name: str, words: str) -> None:
    (choice,) = [choice for choice in linear_modules(tiny(family)) if choice.name == name]
    assert words in choice.trap and bool(words) == bool(choice.trap)
    assert choice.trap in choice.label


def test_module_choice_label_shows_a_common_shape() -> None:
    labels = {choice.name: choice.label for choice in linear_modules(tiny("bert"))}
    assert labels["query"] == "query\nattention query · 2 × (32 × 32) · 128 per rank"
    assert "attention output and MLP out · 4 matrices · 320 per rank" in labels["output.dense"]
    assert "12 matrices · 896 per rank" in all_linear(tiny("bert")).label


@pytest.mark.parametrize("family", FAMILIES)
def test_module_choice_of_family_has_the_matches_and_cost_of_peft(family: str) -> None:
    for choice in [*linear_modules(tiny(family)), all_linear(tiny(family))]:
        model = tiny(family)
        tuned = lora(model, expand_target_modules(model, [choice.name]))
        adapter = sum(p.numel() for name, p in tuned.named_parameters() if "lora_" in name)
        assert (len(wrapped(tuned)), adapter) == (choice.matches, choice.rank_cost), choice
        assert f"{choice.rank_cost:,} per rank" in choice.label


@pytest.mark.parametrize("name", MODELS)
def test_module_choice_of_preset_has_the_matches_of_peft(name: str) -> None:
    for choice in linear_modules(meta_model(model_config(name), 2)):
        assert len(wrapped(lora(meta_model(model_config(name), 2), [choice.name]))) == choice.matches, choice


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_the_encoder_without_pooler_and_head(family: str) -> None:
    model = tiny(family)
    expected = list(encoder_linears(model))
    names = expand_target_modules(model, [ALL_LINEAR])
    assert expected and ALL_LINEAR not in names
    assert wrapped(lora(model, names)) == expected


def test_all_linear_beside_other_names_adds_to_them() -> None:
    model = tiny("bert")
    names = expand_target_modules(model, ["pooler.dense", ALL_LINEAR, "query"])
    assert wrapped(lora(model, names)) == [*encoder_linears(tiny("bert")), "bert.pooler.dense"]
    assert expand_target_modules(model, ["query", "query", "value"]) == ("query", "value")


@pytest.mark.parametrize("family", ENCODERS)
def test_all_linear_matches_encoder_linears_of_transformers_family(family: str) -> None:
    config = AutoConfig.for_model(family)
    if config.is_encoder_decoder:
        return
    model = meta_model(config, 2)
    choices = linear_modules(model)
    assert all(set(choice.roles) <= {*ROLES} and choice.matches for choice in choices)
    names = expand_target_modules(model, [ALL_LINEAR])
    matched = [
        path for path, _ in model.named_modules() if any(f".{path}".endswith(f".{name}") for name in names)
    ]
    assert matched == list(encoder_linears(model))


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # raised by LN tuning of PEFT itself
@pytest.mark.parametrize("family", FAMILIES)
def test_top_layers_wrap_only_the_last_layers(family: str) -> None:
    model = tiny(family)
    if family == "albert":  # one layer's weights serve both
        with pytest.raises(ModelError, match="top_layers is 2, but .* are 1"):
            check_target_modules(model, [ALL_LINEAR], 2)
        assert wrapped(lora(model, expand_target_modules(model, [ALL_LINEAR], 1)))
        return
    check_target_modules(model, [ALL_LINEAR], 2)
    every = set(wrapped(lora(tiny(family), expand_target_modules(model, [ALL_LINEAR]))))
    top = set(wrapped(lora(model, expand_target_modules(model, [ALL_LINEAR], 1))))
    assert top and top == {path for path in every if ".1." in path}
    choice = linear_modules(tiny(family))[0]
    single = wrapped(lora(tiny(family), expand_target_modules(tiny(family), [choice.name], 1)))
    assert single and len(single) == choice.matches // 2 and set(single) <= top


def test_top_layers_without_a_match_are_refused() -> None:
    with pytest.raises(ModelError, match="top_layers is 3, but .* are 2; set it to 0 for all"):
        check_target_modules(tiny("bert"), ["query"], 3)
    with pytest.raises(ModelError, match="nothing in the model's last 1 layers"):
        check_target_modules(tiny("electra"), ["embeddings_project"], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_norms_are_those_of_the_encoder(family: str) -> None:
    model = tiny(family)
    expected = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and path.startswith(f"{model.base_model_prefix}.")
    ]
    tuned = get_peft_model(
        model, LNTuningConfig(task_type=TaskType.SEQ_CLS, target_modules=list(layer_norms(model)))
    )
    assert wrapped(tuned, "ln_tuning_layers") == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_scales_the_mlp_at_its_input(family: str) -> None:
    model = tiny(family)
    names = expand_target_modules(model, [ALL_LINEAR])
    inner = feedforward_modules(model, names)
    ia3 = IA3Config(task_type=TaskType.SEQ_CLS, target_modules=list(names), feedforward_modules=list(inner))
    scaled_in = [path for path, module in get_peft_model(model, ia3).named_modules() if _scales_input(module)]
    for role in ("MLP in", "MLP out"):
        (choice,) = [c for c in linear_modules(tiny(family)) if c.roles[-1] == role]
        assert sum(path.endswith(f".{choice.name}") for path in scaled_in) == choice.matches
    assert feedforward_modules(tiny(family), names[:1]) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_modules_exclude_the_head(family: str) -> None:
    model = tiny(family)
    assert head_modules(model) == HEADS.get(family, ("classifier",))
    offered = {choice.name for choice in linear_modules(model)}
    for path, module in model.named_modules():
        if path.split(".")[0] in head_modules(model) and isinstance(module, nn.Linear):
            assert not any(f".{path}".endswith(f".{name}") for name in offered)


def test_target_modules_without_a_match_raise_error_listing_names() -> None:
    model = tiny("bert")
    check_target_modules(model, ["query", "output.dense", ALL_LINEAR])
    with pytest.raises(ModelError) as error:
        check_target_modules(model, ["query", "q_proj"])
    for word in ("'q_proj'", "query", "key", "value", "intermediate.dense"):
        assert word in str(error.value)
    for head, family in (
        ("classifier", "bert"),
        ("pre_classifier", "distilbert"),
        ("head.dense", "modernbert"),
    ):
        with pytest.raises(ModelError, match=f"names '{head}', which matches nothing"):
            check_target_modules(tiny(family), [head])


def test_all_linear_without_linear_modules_raises_model_error() -> None:
    model = meta_model(AutoConfig.for_model("ibert"), 2)
    with pytest.raises(ModelError, match="'all-linear', which matches nothing in this model; it has none"):
        check_target_modules(model, [ALL_LINEAR])


def test_all_linear_adapter_changes_the_logits() -> None:
    """The wrapped matrices lie on the path from text to logits."""
    model = AutoModelForSequenceClassification.from_config(tiny_config("distilbert"))
    tuned = lora(model, expand_target_modules(model, [ALL_LINEAR])).eval()
    ids = torch.arange(5, 15).reshape(2, 5)
    before = tuned(input_ids=ids).logits
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert not torch.allclose(before, tuned(input_ids=ids).logits)


def _scales_input(module: nn.Module) -> bool:
    return bool(getattr(module, "is_feedforward", False))
