"""Python reads this in every process that the tests start, since `tests/` is on its path there.

It hides bitsandbytes, which PEFT imports wherever it is installed: two of the ten seconds that such a process
takes to start. Most machines have none. A process that computes with it is started with BITSANDBYTES=1.
"""

import os
import sys

if not os.environ.get("BITSANDBYTES"):
    sys.modules["bitsandbytes"] = None  # find_spec and import find no such package then
