"""The cache of downloadable files, inside gradio's own cache, which gradio's file route serves."""

import functools
from pathlib import Path

from gradio.utils import get_upload_folder

from peft_core.service.downloads import DownloadCache

FOLDER = "downloads"


@functools.cache
def download_cache() -> DownloadCache:
    """Return the cache of this process; the first call removes the files of earlier processes."""
    return DownloadCache(Path(get_upload_folder()).resolve() / FOLDER)
