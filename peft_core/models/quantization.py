"""Quantize a base model's frozen weights to 8 or 4 bits (QLoRA: Dettmers et al. 2023, arXiv:2305.14314)."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from peft_core.errors import ModelError

FULL = 32  # bits of a weight that is not quantized


def check_quantization(bits: int) -> None:
    """Raise ModelError if `bits` needs bitsandbytes and it is not installed."""
    if bits != FULL and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"load_in_bits is {bits}, which needs bitsandbytes, and it is not installed here; "
            "run pip install bitsandbytes, or set it to 32."
        )


def quantization_kwargs(bits: int, skip_modules: Sequence[str]) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` loads quantized weights; empty for 32 bits.

    Args:
        bits: 32, 8 or 4.
        skip_modules: Names of the modules that stay in float32.

    Raises:
        ModelError: If bitsandbytes is missing.
    """
    check_quantization(bits)
    if bits == FULL:
        return {}
    if bits == 4:
        quantization_config = BitsAndBytesConfig(
            llm_int8_skip_modules=list(skip_modules),
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    else:
        quantization_config = BitsAndBytesConfig(llm_int8_skip_modules=list(skip_modules), load_in_8bit=True)
    return {
        "quantization_config": quantization_config,
        "device_map": {"": 0 if torch.cuda.is_available() else "cpu"},
    }


def compute_in_float32(model: nn.Module) -> None:
    """Make quantized layers compute in float32 on every CPU.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 computes in bfloat16 outside training, and fails on matrices
    narrower than its blocks.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # the stubs of nn.Module allow only tensors and modules as attributes
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
