"""Train the run in a folder: python -m peft_core.train RUN_DIR."""

import sys

from peft_core.training.entry import main, train

__all__ = ["train"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
