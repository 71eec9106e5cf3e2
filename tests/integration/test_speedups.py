"""Training optimizations: loss and gradients of each match those of the plain step."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft.tuners import lora
from tiny import make_tiny
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AutoTokenizer

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.methods.adapters import apply_method
from peft_core.models.encoder import load_base, set_dropout
from peft_core.models.modules import encoder_layers
from peft_core.runs import Run
from peft_core.training import kernels, speedups
from peft_core.training.arguments import training_arguments
from peft_core.training.batches import UnpaddedCollator
from peft_core.training.fallback import TrainingOptimizations
from peft_core.training.first_token import first_token_forward
from peft_core.training.kernels import attention, lora_linear
from peft_core.training.speedups import optimize_training
from peft_core.training.trainer import build_trainer

FIRST_TOKEN = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
TARGETS = {"distilbert": ["q_lin", "v_lin"], "deberta-v2": ["query_proj"], "modernbert": ["Wqkv"]}
TARGETS |= {"mpnet": ["q", "v"]}
EXACT = 1e-5


def build_model(folder: Path, family: str = "bert", **changes: Any) -> tuple[Any, TrainConfig]:
    """Build a tiny model of a family with nonzero adapter weights."""
    settings = {"target_modules": TARGETS.get(family, ["query", "value"]), **changes}
    config = TrainConfig.from_dict({"model_name_or_path": str(make_tiny(folder, family)), **settings})
    base = load_base(str(folder), None, ("bad", "good"))
    set_dropout(base.model, config.dropout)
    torch.manual_seed(5)
    model = apply_method(base.model, config, base.untrained, base=base.source, steps=20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.normal_(std=0.1)
    return model.train(), config


def batch_of(model: Any, texts: int = 6, tokens: int = 9, *, padded: bool = True) -> dict[str, torch.Tensor]:
    """Return a batch of random tokens in which every second text ends in padding."""
    torch.manual_seed(1)
    ids = torch.randint(10, 60, (texts, tokens))
    mask = torch.ones_like(ids)
    if padded:
        mask[::2, -3:] = 0
        ids[::2, -3:] = model.config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(texts) % 2}


def step(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def assert_same_step(actual: Any, expected: Any, bound: float = EXACT) -> None:
    assert actual[0] == pytest.approx(expected[0], abs=bound)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in actual[1].items():
        assert (gradient - expected[1][name]).abs().max() <= bound, name


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("family", FIRST_TOKEN)
def test_first_token_forward_gives_same_step(family: str, padded: bool, tmp_path: Path) -> None:
    model, config = build_model(tmp_path, family)
    batch = batch_of(model, padded=padded)
    plain = step(model, batch)
    layers, token_counts = encoder_layers(model), []
    with optimize_training(model, config, batch, 1) as applied:
        assert applied.record.first_token and applied.record.lora_layers == 4
        hook = layers[-1].register_forward_hook(lambda _, __, out: token_counts.append(out.shape[1]))
        optimized = step(model, batch)
        hook.remove()
    assert token_counts == [1]  # of nine tokens
    assert_same_step(optimized, plain)
    assert_same_step(step(model, batch), plain, 0.0)  # the model is restored


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert", "mpnet", "albert"])
def test_first_token_forward_of_other_architectures_is_skipped(family: str, tmp_path: Path) -> None:
    model, config = build_model(tmp_path, family)
    batch = batch_of(model)
    plain = step(model, batch)
    with optimize_training(model, config, batch, 1) as applied:
        assert not applied.record.first_token
        assert_same_step(step(model, batch), plain)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["all-linear"]},
        {"use_dora": True},
        {"lora_dropout": 0.1},
        {"method": "ia3"},
        {"method": "prefix_tuning"},
        {"method": "p_tuning"},
        {"method": "full"},
        {"method": "adalora"},
    ],
    ids=str,
)
def test_optimize_training_of_every_method_gives_same_step(changes: dict[str, Any], tmp_path: Path) -> None:
    model, config = build_model(tmp_path, **changes)
    batch = batch_of(model)
    model.eval()  # without LoRA's dropout, which differs between steps
    plain = step(model, batch)
    with optimize_training(model, config, batch, 1) as applied:
        fused = not changes or "use_rslora" in changes or "target_modules" in changes
        assert bool(applied.record.lora_layers) == fused
        assert_same_step(step(model, batch), plain)
    assert not [m for m in model.modules() if "forward" in vars(m)]


def test_first_token_forward_with_mean_pooling_head_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="peft_core")
    model, config = build_model(tmp_path)
    pooler = model.base_model.model.bert.pooler
    read = type(pooler).forward
    pooler.forward = lambda hidden: read(pooler, hidden.mean(1, keepdim=True))
    batch = batch_of(model)
    plain = step(model, batch)
    with optimize_training(model, config, batch, 1) as applied:
        assert not applied.record.first_token
        assert_same_step(step(model, batch), plain)
    assert "first_token is not applied" in caplog.text


def test_bfloat16_layers_keep_loss_approximately_and_weights_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedups, "WORTH_IT", 1000)
    monkeypatch.setattr(speedups, "is_bfloat16_faster", lambda device: True)
    model, config = build_model(tmp_path)
    batch = batch_of(model)
    plain, before = step(model, batch), {n: p.detach().clone() for n, p in model.named_parameters()}
    with optimize_training(model, config, batch, 1) as applied:
        assert applied.record.dtype == "bfloat16" and 0 < applied.record.gradient_error < speedups.HALF
        dtypes = {n: p.dtype for n, p in model.named_parameters()}
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {dtypes[n] for n in trained} == {torch.float32}
        assert dtypes["base_model.model.bert.encoder.layer.0.attention.self.key.weight"] == torch.bfloat16
        optimized = step(model, batch)
    assert optimized[0] == pytest.approx(plain[0], abs=0.02)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.equal(before[name]), name
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("name", "replacement"),
    [("WORTH_IT", 10**9), ("HALF", 0.0), ("is_bfloat16_faster", lambda device: False)],
)
def test_bfloat16_layers_without_gain_or_accuracy_are_skipped(
    name: str, replacement: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speedups, "WORTH_IT", 1000)
    monkeypatch.setattr(speedups, "is_bfloat16_faster", lambda device: True)
    monkeypatch.setattr(speedups, name, replacement)
    model, config = build_model(tmp_path)
    with optimize_training(model, config, batch_of(model), 1) as applied:
        assert applied.record.dtype == "float32"
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_optimize_training_follows_plain_arithmetic_and_previous_record(
    tmp_path: Path,
) -> None:
    model, config = build_model(tmp_path, arithmetic="plain")
    with optimize_training(model, config, batch_of(model), 1) as applied:
        assert applied.record == TrainingOptimizations() and not [
            m for m in model.modules() if "forward" in vars(m)
        ]
    fast = TrainConfig.from_dict({**config.to_dict(), "arithmetic": "fast"})
    before = TrainingOptimizations(lora_layers=4)
    with optimize_training(model, fast, batch_of(model), 1, before) as applied:
        assert applied.record.lora_layers == 4 and not applied.record.first_token


def test_lora_linear_matches_separate_operations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 5, 8), (6, 8), (6,)))
    a, b = torch.randn(2, 8, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    expected = linear(x, weight, bias) + 1.7 * linear(linear(x, a), b)
    assert torch.allclose(lora_linear(x, weight, bias, a, b, 1.7), expected)
    inputs = (x.requires_grad_(), a.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, bias, a, b, 1.7), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lora_linear_under_autocast_accepts_mixed_dtypes(dtype: torch.dtype) -> None:
    """Under autocast, some layers get float32 inputs and some get bfloat16."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8).to(dtype).requires_grad_()
    weight, bias = torch.randn(6, 8), torch.randn(6)
    a, b = torch.randn(2, 8, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    expected = linear(x.float(), weight, bias) + 0.7 * linear(linear(x.float(), a), b)
    with torch.autocast("cpu", torch.bfloat16):
        output = lora_linear(x, weight, bias, a, b, 0.7)
    assert output.dtype == torch.bfloat16 and torch.allclose(output.float(), expected, atol=0.2)
    output.float().pow(2).sum().backward()
    assert (x.grad.dtype, a.grad.dtype, b.grad.dtype) == (dtype, torch.float32, torch.float32)
    wide = lora_linear(x.to(torch.bfloat16), weight, bias, a, b, 0.7)  # without autocast
    assert wide.dtype == torch.float32


@pytest.mark.parametrize("cached", [1_000_000, 2 * 2 * 70 * 70, 1], ids=["at once", "by two", "one by one"])
@pytest.mark.parametrize("tokens", [7, 70])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_matches_scaled_dot_product_attention(
    masked: bool, tokens: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_CACHED_SCORES", cached)
    torch.manual_seed(0)
    wide = [torch.randn(3, 2, tokens, 8, requires_grad=True) for _ in range(3)]
    mask = None
    if masked:
        mask = torch.ones(3, 1, 1, tokens, dtype=torch.bool)
        mask[1, ..., 4:] = False
    half = [tensor.detach().to(torch.bfloat16).requires_grad_() for tensor in wide]
    output = attention(*half, mask, 0.3)
    expected = scaled_dot_product_attention(*wide, attn_mask=mask, scale=0.3)
    assert output.dtype == torch.bfloat16
    assert torch.allclose(output.float(), expected, atol=0.03)
    output.float().pow(2).sum().backward()
    expected.pow(2).sum().backward()
    for narrow_input, wide_input in zip(half, wide, strict=True):
        difference = narrow_input.grad.float() - wide_input.grad
        assert difference.norm() < 0.03 * wide_input.grad.norm()


@pytest.mark.parametrize(
    ("rows", "dtype", "expected_rows"),
    [(5, torch.bfloat16, 64), (64, torch.bfloat16, 64), (65, torch.bfloat16, 128), (5, torch.float32, 5)],
    ids=str,
)
def test_first_token_forward_in_bfloat16_pads_rows(
    rows: int, dtype: torch.dtype, expected_rows: int, tmp_path: Path
) -> None:
    """On a CPU, where each new number of rows costs time; padding does not change the output of a text."""
    model, _ = build_model(tmp_path)
    layer, row_counts = encoder_layers(model)[-1].to(dtype), []
    layer.output.register_forward_pre_hook(lambda _, inputs: row_counts.append(inputs[0].shape[0]))
    states = torch.randn(rows, 4, model.config.hidden_size).to(dtype)
    with torch.no_grad():
        output, expected = first_token_forward(layer)(states), layer(states)[:, :1]
    assert output.shape == expected.shape and row_counts[0] == expected_rows
    assert torch.allclose(output.float(), expected.float(), atol=0.05)


def test_training_gradients_weight_every_text_equally(tmp_path: Path) -> None:
    """The gradients of an epoch's batches sum to the gradient of all texts in one batch."""
    model, config = build_model(tmp_path / "model", per_device_train_batch_size=4)
    model.eval()
    lengths = [3, 9, 4, 4, 20, 7, 3, 3, 3, 12, 5, 5, 6, 30]
    texts = [{"input_ids": [5 + i] * n, "attention_mask": [1] * n} for i, n in enumerate(lengths)]
    rows = Dataset.from_list([{**text, "labels": i % 2} for i, text in enumerate(texts)])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    run = runs.create(tmp_path / "runs", config)
    arguments = training_arguments(run, config, len(rows), curve=None, autocast=False)
    trainer = build_trainer(model, config, arguments, tokenizer, rows, None)
    expected = step(model, UnpaddedCollator(tokenizer)(list(rows)))[1]

    model.zero_grad()
    batches = list(trainer.get_train_dataloader())
    for batch in batches:
        model.training = True  # of the outer module alone: a training loss without dropout
        trainer.compute_loss(model, batch).backward()
    assert len({len(batch["labels"]) for batch in batches}) > 1
    first_batch = {name: value.clone() for name, value in batches[0].items()}
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    trainer.current_gradient_accumulation_steps = 1  # as the loop of Trainer sets it
    for parts in (1, 3):  # the logged loss is the mean of the texts at any batch size
        trainer.parts = parts
        assert trainer.training_step(model, first_batch).item() == pytest.approx(
            float(model(**first_batch).loss.detach())
        )
    for name, parameter in model.named_parameters():
        parameter.grad = grads.get(name)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad * config.per_device_train_batch_size / len(rows)
            assert (gradient - expected[name]).abs().max() <= EXACT, name


@pytest.mark.parametrize(("tokens", "texts"), [(28, 64), (256, 16), (2000, 8), (None, 64)])
def test_evaluation_batch_size_shrinks_with_text_length(
    tokens: int | None, texts: int, tmp_path: Path
) -> None:
    curve = Dataset.from_dict({"input_ids": [[1] * (tokens - 4), [1] * (tokens + 4)]}) if tokens else None
    run = runs.create(tmp_path, TrainConfig())
    arguments = training_arguments(run, TrainConfig(), 100, curve=curve, autocast=False)
    assert arguments.per_device_eval_batch_size == texts
    assert (arguments.eval_strategy == "steps") == bool(tokens)


def test_fast_run_gives_metrics_of_plain_run(train_here: Callable[..., Run]) -> None:
    fast, plain = train_here(arithmetic="fast"), train_here(arithmetic="plain")
    assert fast.result()["speedups"]["first_token"] and fast.result()["speedups"]["lora_layers"] == 4
    assert plain.result()["speedups"] == TrainingOptimizations().to_dict()
    assert fast.result()["eval_loss"] == pytest.approx(plain.result()["eval_loss"], abs=1e-3)
    assert fast.result()["tokens"] == plain.result()["tokens"]


def test_dropout_is_off_by_default(tmp_path: Path) -> None:
    model, _ = build_model(tmp_path, "modernbert")
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    model, _ = build_model(tmp_path, "bert", dropout=0.2)
    dropout_rates = [
        m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and "lora" not in n
    ]
    assert dropout_rates and set(dropout_rates) == {0.2}
    batch = batch_of(model)
    assert step(model, batch)[0] != step(copy.deepcopy(model), batch)[0]


def test_lora_layer_with_two_active_adapters_is_skipped(tmp_path: Path) -> None:
    model, config = build_model(tmp_path)
    layer = next(m for m in model.modules() if isinstance(m, lora.Linear))
    layer._active_adapter = ["default", "default"]
    with optimize_training(model, config, batch_of(model), 1) as applied:
        assert applied.record.lora_layers == 3
