"""Base models: length limits, kept and fresh heads, and rejected models."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, NLPTOWN_LABELS, YELP_LABELS, make_tiny_bert, make_tiny_with_head
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    T5Config,
    ViTConfig,
)

from peft_core.config import EMBEDDED_MODEL, TrainConfig
from peft_core.errors import ModelError, PeftCoreError
from peft_core.models import sources
from peft_core.models.encoder import (
    check_max_length,
    load_base,
    max_input_length,
    model_config,
    plan_head,
)
from peft_core.models.heads import HeadChange
from peft_core.models.presets import embedded_model_folder
from peft_core.problem_types import SINGLE


@pytest.mark.parametrize(
    "name, limit",
    [
        ("google-bert/bert-base-cased", 512),
        ("FacebookAI/roberta-base", 512),
        ("answerdotai/ModernBERT-base", 8192),
        (EMBEDDED_MODEL, 512),
    ],
)
def test_check_max_length_above_model_limit_raises(name: str, limit: int) -> None:
    config = model_config(name)
    assert max_input_length(config) == limit
    check_max_length(config, limit)
    with pytest.raises(ModelError, match=f"max_length is {limit + 1}; this model reads at most {limit}"):
        check_max_length(config, limit + 1)


@pytest.mark.parametrize(
    "family",
    [
        "albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ibert", "luke", "mpnet",
        "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
    ],
)  # fmt: skip
def test_max_input_length_is_the_longest_readable_input(family: str) -> None:
    """Covers the families with a table of position embeddings."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if family == "distilbert":
        sizes = {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
    config = AutoConfig.for_model(family, vocab_size=50, max_position_embeddings=40, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    longest = torch.full((1, max_input_length(config)), 7)
    model(input_ids=longest, attention_mask=torch.ones_like(longest))
    too_long = torch.full((1, max_input_length(config) + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=too_long, attention_mask=torch.ones_like(too_long))


@pytest.mark.parametrize("config", [GPT2Config(), LlamaConfig(), T5Config(), ViTConfig()])
def test_model_config_non_encoder_raises(config: object, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is a {config.model_type} model"):
        model_config(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"model_type": "no-such-model"}',
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}',
    ],
)
def test_model_config_invalid_raises_one_line_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as error:
        model_config(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["./nowhere", "/nowhere/at/all", "~nobody-here/model", "/" + "a" * 5000, "a" * 5000, "a\0b", "a b"],
)
def test_model_config_missing_model_raises_one_line_error(name: str) -> None:
    with pytest.raises(PeftCoreError) as error:
        model_config(name)
    assert "\n" not in str(error.value)


def test_load_base_reports_untrained_modules(tiny_model: Path, tmp_path: Path) -> None:
    assert load_base(str(tiny_model), None, ["no", "yes"]).untrained == ("classifier",)
    bare = make_tiny_bert(tmp_path / "bare", with_head=False, with_pooler=False)
    base = load_base(str(bare), None, ["no", "yes"])
    assert base.untrained == ("bert.pooler.dense", "classifier")
    assert base.head_is_fresh


def test_load_base_plural_label_names_keep_the_head(tmp_path: Path) -> None:
    stars = make_tiny_bert(tmp_path / "stars")
    base = load_base(str(stars), None, YELP_LABELS)
    assert (base.untrained, base.head_is_fresh, base.head_change) == ((), False, None)
    assert list(base.model.config.id2label.values()) == YELP_LABELS
    numbers = load_base(str(stars), None, ["1", "2", "3", "4", "5"], has_label_names=False)
    assert numbers.model.config.id2label == NLPTOWN_LABELS and numbers.head_change is None


@pytest.mark.parametrize("family", FAMILIES)
def test_load_base_labels_in_another_order_permutes_the_logits(family: str, tmp_path: Path) -> None:
    """The output of each label moves to the position that the label has in the data."""
    folder = make_tiny_with_head(tmp_path / family, family, ("POSITIVE", "neutral", "Negative"))
    plain, permuted = (
        load_base(str(folder), None, names)
        for names in (("positive", "neutral", "negative"), ("negative", "positive", "neutral"))
    )
    assert plain.head_change is None and permuted.head_change.rows == (2, 0, 1)
    assert permuted.model.config.id2label == {0: "negative", 1: "positive", 2: "neutral"}
    inputs = plain.tokenizer(["The food was awful and the room was nice."], return_tensors="pt")
    with torch.no_grad():
        before, after = (base.model.eval()(**inputs).logits[0] for base in (plain, permuted))
    assert torch.equal(after, before[[2, 0, 1]])
    config = TrainConfig(model_name_or_path=str(folder))
    assert plan_head(config, ("negative", "positive", "neutral"), SINGLE) == permuted.head_change


def test_load_base_unmatched_label_names_raises(tmp_path: Path) -> None:
    folder = str(make_tiny_bert(tmp_path / "head", num_labels=2))
    question = r"for 'LABEL_0', 'LABEL_1', .* has 'bad', 'good'.*base_head: by_order .*'bad' as 'LABEL_0'"
    with pytest.raises(ModelError, match=question):
        load_base(folder, None, ["bad", "good"])
    with pytest.raises(ModelError, match=question):
        plan_head(TrainConfig(model_name_or_path=folder), ("bad", "good"), SINGLE)
    by_order = load_base(folder, None, ["bad", "good"], base_head="by_order")
    assert not by_order.head_is_fresh and by_order.head_change is None
    assert by_order.model.config.id2label == {0: "bad", 1: "good"}


def test_load_base_fresh_head_reinitializes_the_output_layer(tmp_path: Path) -> None:
    folder = str(make_tiny_bert(tmp_path / "head", num_labels=2))
    pretrained = load_base(folder, None, ["bad", "good"], base_head="by_order").model.classifier
    fresh = load_base(folder, None, ["bad", "good"], base_head="fresh")
    assert fresh.head_is_fresh and fresh.untrained == ("classifier",)
    assert fresh.head_change == HeadChange("classifier", None)
    assert not torch.equal(fresh.model.classifier.weight, pretrained.weight)
    assert 0.01 < fresh.model.classifier.weight.std().item() < 0.04
    assert not fresh.model.classifier.bias.any()


def test_load_base_head_of_other_size_is_replaced(tmp_path: Path) -> None:
    base = load_base(str(make_tiny_bert(tmp_path / "stars")), None, ["no", "yes"])
    assert base.untrained == ("classifier",)
    assert base.head_is_fresh
    assert base.model.classifier.weight.shape == (2, 32)
    assert base.model.config.id2label == {0: "no", 1: "yes"}


def test_load_base_pickled_weights_raises(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_base(str(folder), None, ["no", "yes"])


def test_load_base_truncated_weights_raises(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "cut")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(folder), None, ["no", "yes"])


def test_load_base_without_tokenizer_raises(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(folder), None, ["no", "yes"])


def test_load_base_altered_embedded_model_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(embedded_model_folder(), tmp_path / "model")
    monkeypatch.setattr(sources, "embedded_model_folder", lambda: folder)
    load_base(EMBEDDED_MODEL, None, ["no", "yes"])
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ModelError, match="model.safetensors is not the one this app was built for"):
        load_base(EMBEDDED_MODEL, None, ["no", "yes"])


def test_load_base_local_model_revision_is_content_hash(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    revision = load_base(str(tiny_model), None, ["no", "yes"]).source.revision
    assert revision.startswith("sha256:")
    assert load_base(str(copy), None, ["no", "yes"]).source.revision == revision
