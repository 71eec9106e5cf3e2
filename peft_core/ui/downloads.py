"""Where the page keeps what it hands out: in gradio's own cache, which its file route reads."""

import functools
from pathlib import Path

from gradio.utils import get_upload_folder

from peft_core.downloads import DownloadCache

FOLDER = "downloads"


@functools.cache
def download_cache() -> DownloadCache:
    """The cache of this process; the first call removes what earlier processes left."""
    return DownloadCache(Path(get_upload_folder()).resolve() / FOLDER)
