"""Gradio sessions that keep no copy of field values.

Gradio 6.31 keeps a description of every component with each session, including the last value sent of each
field, for "deep links", which this app does not offer. That takes half a megabyte per session and 30 ms of
the thread that answers all requests, also for each API call; and a Hub token would remain in memory.
"""

from types import SimpleNamespace
from typing import Any, cast

from gradio.blocks import Blocks
from gradio.state_holder import SessionState

_original_init = SessionState.__init__


def keep_no_values() -> None:
    """Make gradio's sessions start without component descriptions and store no values."""
    SessionState.__init__ = _init_without_blocks
    SessionState._update_config = _ignore_update
    SessionState._update_value_in_config = _ignore_update


def _init_without_blocks(self: SessionState, blocks: Blocks) -> None:
    # gradio reads only these two attributes of the blocks
    _original_init(self, cast(Blocks, SimpleNamespace(default_config=blocks.default_config, blocks={})))


def _ignore_update(self: SessionState, key: int, value: Any = None) -> None:
    pass
