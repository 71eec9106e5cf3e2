"""Sessions of gradio that keep no copy of what people type.

Gradio 6.31 keeps a description of every component with each session, and in it the last value of each field
that was sent, for "deep links", which this app does not offer. That is half a megabyte a session and 30 ms of
the thread that answers everyone, also for each call of a program; and a Hub token that was typed would stay.
"""

from types import SimpleNamespace
from typing import Any

from gradio.blocks import Blocks
from gradio.state_holder import SessionState

_begin = SessionState.__init__


def keep_no_values() -> None:
    """Have gradio's sessions begin without descriptions, and take up no value."""
    SessionState.__init__ = _begin_empty
    SessionState._update_config = _keep_nothing
    SessionState._update_value_in_config = _keep_nothing


def _begin_empty(session: SessionState, blocks: Blocks) -> None:
    _begin(session, SimpleNamespace(default_config=blocks.default_config, blocks={}))


def _keep_nothing(session: SessionState, key: int, value: Any = None) -> None:
    pass
