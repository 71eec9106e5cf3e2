"""Fine-tune, count, merge and try medium-size encoders: everything PEFT Workbench does, without a page."""

import logging

# It warns of kernels that it would fetch from the Hub, and of a cast at every matrix product.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
