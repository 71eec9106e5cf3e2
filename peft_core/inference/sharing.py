"""Several models in memory at once: what they have in common is held once."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import nn

from peft_core.data.tokens import tokenizer_digest


class SharedWeights:
    """Lets models that were loaded apart hold equal tensors once: one more adapter costs its own size.

    A tensor is shared with one of the same name and key, and only if every value is the same. Nothing may
    write into a model's weights afterwards.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, list[weakref.ref]] = {}

    def share(self, key: Hashable, model: nn.Module) -> None:
        """Let the model use what other models of this key hold, and offer its tensors to the next."""
        for name, parameter in model.named_parameters():
            if parameter.device.type == "meta" or type(parameter) is not nn.Parameter:
                continue  # a quantised weight is more than its values
            name = _plain(name)
            alive = [ref for ref in self._held.get((key, name), ()) if ref() is not None]
            donor = next((ref() for ref in alive if _same(ref(), parameter)), None)
            if donor is not None:
                parameter.data = donor.data
            self._held[key, name] = [*alive, weakref.ref(parameter)]


class SharedTokenizers:
    """Lets models that were loaded apart use one tokenizer where theirs are equal.

    A Unigram vocabulary of 250,000 pieces takes some 260 MB, more than the weights of many a small model.
    Only tokenizers with a backend are shared: the digest of any other covers its vocabulary alone.
    """

    def __init__(self) -> None:
        self._tokenizers: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()

    def share(self, tokenizer: Any) -> Any:
        """Return an equal tokenizer that is in use, or this one."""
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
    """Loaded models by key; where all together hold more than `most_bytes`, the longest unused goes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._loaded: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()

    def get(self, key: Hashable, version: Hashable, load: Callable[[], Any]) -> Any:
        """Return the model of a key, loaded if this version of it is not there; an older version goes.

        `load` returns something with a `model`.
        """
        if key not in self._loaded or self._loaded[key][0] != version:
            self._loaded.pop(key, None)  # before the load, so that the two are never in memory together
            self._loaded[key] = (version, load())
        self._loaded.move_to_end(key)
        while len(self._loaded) > 1 and self.held_bytes() > self.most_bytes:
            self._loaded.popitem(last=False)
        return self._loaded[key][1]

    def drop(self, is_gone: Callable[[Hashable], bool]) -> None:
        """Let go of the models whose key is of something that is gone."""
        for key in [key for key in self._loaded if is_gone(key)]:
            del self._loaded[key]

    def held_bytes(self) -> int:
        """Return the bytes of all tensors, each counted once however many models use it."""
        return tensor_bytes(one.model for _, one in self._loaded.values() if one.model is not None)

    def __len__(self) -> int:
        return len(self._loaded)


def tensor_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of the models' parameters and buffers, each piece of memory counted once."""
    pieces = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            pieces[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(pieces.values())


def _plain(name: str) -> str:
    """A parameter's name in the base model, without what PEFT wraps around it."""
    name = name.removeprefix("base_model.").removeprefix("model.").replace(".base_layer.", ".")
    return name.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
