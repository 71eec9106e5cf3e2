"""A base model with its frozen weights in 8 or 4 bits (QLoRA: Dettmers et al. 2023, arXiv:2305.14314)."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from peft_core.errors import ModelError

FULL = 32  # bits of a weight that is not quantised


def check_quantisation(bits: int) -> None:
    """Raise ModelError if this machine cannot hold weights in so few bits."""
    if bits != FULL and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"load_in_bits is {bits}, which needs bitsandbytes, and it is not installed here; "
            "run pip install bitsandbytes, or take 32."
        )


def quantisation_arguments(bits: int, kept: Sequence[str]) -> dict[str, Any]:
    """What `from_pretrained` needs to load weights in so few bits; the modules kept stay as they are.

    Empty for 32. Raises ModelError where bitsandbytes is missing.
    """
    check_quantisation(bits)
    if bits == FULL:
        return {}
    four = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    }
    how = four if bits == 4 else {"load_in_8bit": True}
    return {
        "quantization_config": BitsAndBytesConfig(llm_int8_skip_modules=list(kept), **how),
        "device_map": {"": 0 if torch.cuda.is_available() else "cpu"},
    }


def compute_in_float32(model: nn.Module) -> None:
    """Let quantised weights answer in float32 on every processor.

    Where a processor has AVX512-BF16, bitsandbytes 0.50 answers in bfloat16 outside training, and fails on
    matrices narrower than its blocks.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
