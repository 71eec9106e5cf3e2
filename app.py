"""PEFT Workbench: `python app.py` serves the page.

`demo` is the Gradio app that a Space looks for; launched without `main` it has no guard and no login.
"""

import os
import sys
from typing import TYPE_CHECKING

from peft_core.ui.options import read_options

# The worker process imports this file again, and needs no page.
if TYPE_CHECKING or __name__ != "__mp_main__":
    from peft_core.ui.server import open_app, serve

    options = read_options(sys.argv[1:] if __name__ == "__main__" else [], os.environ)
    workbench, demo = open_app(options)


def main() -> None:
    """Serve until stopped."""
    serve(options, workbench, demo)


if __name__ == "__main__":
    main()
