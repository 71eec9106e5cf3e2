"""Fine-tune, count, merge and try medium-size encoders: everything PEFT Workbench does, without a page."""

import gc
import logging
import sys

# It warns of kernels that it would fetch from the Hub, and of a cast at every matrix product.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

if sys.argv[:1] == ["-m"]:  # `python -m peft_core.train` imports this first, then torch; see garbage.py
    gc.disable()  # until `main` resumes it
