"""Core of PEFT Workbench, without the page: fine-tune, count, merge and try medium-size encoders."""

import gc
import logging
import sys

# bitsandbytes warns of kernels that it would download from the Hub, and of a cast at every matrix product.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# `python -m peft_core.train` imports this module before torch; see training/garbage.py
if sys.argv[:1] == ["-m"]:
    gc.disable()  # until `main` enables it again
