"""Estimate how many bytes a training, a merge or an export will write."""

_FLOAT32 = 4
_COPIES = 8  # of the trained weights: adapter, best step, and two checkpoints with two optimizer moments each
_OTHER = 20_000_000  # evaluation rows, metrics, tokenizer, tokens
EXPORT_SIZES = {"onnx": 2.5, "embeddings": 2.0, "page": 1.5, "script": 0.0}  # size of an export in models


def training_bytes(trainable: int) -> int:
    """Return the bytes that a training with this many trainable parameters writes until it has ended."""
    return _COPIES * _FLOAT32 * trainable + _OTHER


def model_bytes(parameters: int) -> int:
    """Return the bytes of a whole model in float32, with its tokenizer."""
    return _FLOAT32 * parameters + _OTHER
