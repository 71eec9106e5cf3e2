"""Merge the adapter of the run in a folder into its base model: python -m peft_core.merge RUN_DIR."""

import sys

from peft_core.merging.merge import main, merge

__all__ = ["merge"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
