"""PEFT Workbench: fine-tune, count, merge and try medium-size encoders, from Python, a page or an API.

The names in `__all__` are the Python API. Each is imported when it is first used: `import peft_core` alone
loads neither torch nor transformers.
"""

import gc
import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft_core.config import TrainConfig
    from peft_core.counts import count_parameters
    from peft_core.inference.predictor import Predictor
    from peft_core.merging.merge import merge
    from peft_core.runs import Run
    from peft_core.runs.store import create as create_run
    from peft_core.training.entry import train

__all__ = ["Predictor", "Run", "TrainConfig", "count_parameters", "create_run", "merge", "train"]
_PLACES = {
    "Predictor": ("peft_core.inference.predictor", "Predictor"),
    "Run": ("peft_core.runs", "Run"),
    "TrainConfig": ("peft_core.config", "TrainConfig"),
    "count_parameters": ("peft_core.counts", "count_parameters"),
    "create_run": ("peft_core.runs.store", "create"),
    "merge": ("peft_core.merging.merge", "merge"),
    "train": ("peft_core.training.entry", "train"),
}

# bitsandbytes warns of kernels that it would download from the Hub, and of a cast at every matrix product.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# `python -m peft_core.train` imports this module before torch; see training/garbage.py
if sys.argv[:1] == ["-m"]:
    gc.disable()  # until `main` enables it again


def __getattr__(name: str) -> Any:
    """Import a name of the Python API (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
