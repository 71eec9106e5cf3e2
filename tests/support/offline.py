"""Environment of the tests, imported first: an empty cache of Hub files and no network."""

import atexit
import os
import shutil
import tempfile

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there, so a Hub client is refused at once
HOME = tempfile.mkdtemp(prefix="workbench-tests-")

atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=HOME,
    HF_ENDPOINT=NOBODY,
    HF_UPDATE_DOWNLOAD_COUNTS="0",
    HF_HUB_DISABLE_TELEMETRY="1",
    NO_PROXY="127.0.0.1,localhost",
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
)
