"""About how many bytes a training, a merge or an export will write."""

_FLOAT32 = 4
_COPIES = 8  # of what is trained: adapter, best step, and two checkpoints with the optimizer's two moments
_OTHER = 20_000_000  # evaluation rows, metrics, tokenizer, tokens
EXPORTED_MODELS = {"onnx": 2.5, "embeddings": 2.0, "page": 1.5, "script": 0.0}  # whole models in an export


def training_bytes(trainable: int) -> int:
    """Of a training of so many parameters, until it has ended."""
    return _COPIES * _FLOAT32 * trainable + _OTHER


def model_bytes(parameters: int) -> int:
    """Of a whole model in float32, with its tokenizer."""
    return _FLOAT32 * parameters + _OTHER
