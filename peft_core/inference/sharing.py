"""Keep several models in memory, with equal tensors and tokenizers stored once."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import nn

from peft_core.data.tokens import tokenizer_digest


class SharedWeights:
    """Share equal tensors between separately loaded models, so that another adapter costs only its own size.

    A tensor is shared with one of the same name and key, and only if all values are equal. Nothing may write
    into a model's weights afterwards.
    """

    def __init__(self) -> None:
        self._parameters: dict[Hashable, list[weakref.ref[torch.Tensor]]] = {}

    def share(self, key: Hashable, model: nn.Module) -> None:
        """Replace the model's tensors by equal ones of other models with this key, and offer its own."""
        for name, parameter in model.named_parameters():
            if parameter.device.type == "meta" or type(parameter) is not nn.Parameter:
                continue  # a quantized weight has state beside its values
            name = _base_model_name(name)
            references = self._parameters.get((key, name), ())
            alive = [(ref, tensor) for ref in references if (tensor := ref()) is not None]
            donor = next((tensor for _, tensor in alive if _equal(tensor, parameter)), None)
            if donor is not None:
                parameter.data = donor.data
            self._parameters[key, name] = [*(ref for ref, _ in alive), weakref.ref(parameter)]


class SharedTokenizers:
    """Share equal tokenizers between separately loaded models.

    A Unigram vocabulary of 250,000 pieces takes about 260 MB, more than the weights of many small models.
    Only tokenizers with a backend are shared: the digest of any other covers only its vocabulary.
    """

    def __init__(self) -> None:
        self._tokenizers: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()

    def share(self, tokenizer: Any) -> Any:
        """Return an equal tokenizer that is in use already, or this one."""
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            return tokenizer
        key = (
            tokenizer_digest(tokenizer),
            tokenizer.padding_side,
            tuple(tokenizer.model_input_names),
            tuple(sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())),
        )
        return self._tokenizers.setdefault(key, tokenizer)


class ModelCache:
    """Least-recently-used cache of loaded models, limited to `max_bytes` of tensors in total."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._loaded: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()

    def get(self, key: Hashable, version: Hashable, load: Callable[[], Any]) -> Any:
        """Return the entry of a key; load it if it is missing or of another version, which is dropped.

        `load` returns an object with a `model` attribute.
        """
        if key not in self._loaded or self._loaded[key][0] != version:
            self._loaded.pop(key, None)  # before the load, so that the two are never in memory together
            self._loaded[key] = (version, load())
        self._loaded.move_to_end(key)
        while len(self._loaded) > 1 and self.memory_bytes() > self.max_bytes:
            self._loaded.popitem(last=False)
        return self._loaded[key][1]

    def drop(self, is_gone: Callable[[Hashable], bool]) -> None:
        """Remove the models for whose key `is_gone` returns True."""
        for key in [key for key in self._loaded if is_gone(key)]:
            del self._loaded[key]

    def memory_bytes(self) -> int:
        """Return the bytes of all tensors; a shared tensor counts once."""
        return tensor_bytes(entry.model for _, entry in self._loaded.values() if entry.model is not None)

    def __len__(self) -> int:
        return len(self._loaded)


def tensor_bytes(models: Iterable[nn.Module]) -> int:
    """Return the bytes of the models' parameters and buffers; shared storage counts once."""
    storages = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _base_model_name(name: str) -> str:
    """Return a parameter's name in the base model, without PEFT's wrappers."""
    name = name.removeprefix("base_model.").removeprefix("model.").replace(".base_layer.", ".")
    return name.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)
