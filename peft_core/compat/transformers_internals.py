"""transformers 5.23: the name of a model's attention function, which only a private attribute holds."""

from typing import Any


def attention_implementation(config: Any) -> str | None:
    """Return the name of a loaded model's attention function, such as "sdpa"; None if it has none."""
    return config._attn_implementation


def set_attention_implementation(config: Any, name: str | None) -> None:
    """Set the attention function to one that is registered with `AttentionInterface`."""
    config._attn_implementation = name
