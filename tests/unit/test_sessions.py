"""Gradio sessions store no typed text, and pages poll less often when nothing changes."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.server_messages import HeartbeatMessage, ProcessCompletedMessage
from gradio.state_holder import SessionState

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.service.workbench import Workbench
from peft_core.ui.page import build_page
from peft_core.ui.requests import MOST_UNREAD, pending_sessions
from peft_core.ui.train import IDLE_POLL_SECONDS, POLL_SECONDS, _poll_seconds


def test_session_state_keeps_no_typed_value(tmp_path: Path) -> None:
    page = build_page(Workbench.open(tmp_path / "runs"))
    (token,) = [block for block in page.blocks.values() if getattr(block, "elem_id", None) == "push-token"]
    session = SessionState(page)
    session._update_value_in_config(token._id, "hf_secret")
    session._update_config(token._id)
    assert session.config_values == {} and "hf_secret" not in repr(vars(session))
    assert session[token._id] is token
    session[token._id] = gr.Textbox(label="Another")
    assert session[token._id].label == "Another" and page.blocks[token._id].label != "Another"


@pytest.mark.parametrize("public", [True, False])
def test_poll_interval_is_short_while_run_is_active(public: bool, tmp_path: Path) -> None:
    workbench = Workbench.open(tmp_path / "runs", public=public)
    run = runs.create(workbench.runs_dir, TrainConfig())
    assert _poll_seconds(workbench, run.run_id) == POLL_SECONDS
    run.update(status="KILLED")
    for run_id in (run.run_id, None, "no-run"):
        assert _poll_seconds(workbench, run_id) == (IDLE_POLL_SECONDS if public else POLL_SECONDS)


def test_pending_sessions_drops_all_unread_but_newest_answers() -> None:
    unread, recent = asyncio.Queue(), asyncio.Queue()
    for number in range(3 * MOST_UNREAD):
        unread.put_nowait(HeartbeatMessage())
        unread.put_nowait(ProcessCompletedMessage(event_id=str(number), output={}, success=True))
    recent.put_nowait(HeartbeatMessage())
    waiting = SimpleNamespace(queue=[SimpleNamespace(session_hash="waits")])
    queue = SimpleNamespace(
        pending_messages_per_session={"gone": unread, "here": recent},
        event_queue_per_concurrency_id={"": waiting},
        active_jobs=[None, [SimpleNamespace(session_hash="is worked on")]],
    )
    assert list(pending_sessions(queue)) == ["waits", "is worked on"]
    remaining = [unread.get_nowait() for _ in range(unread.qsize())]
    assert len(remaining) == MOST_UNREAD // 2 and remaining[-1].event_id == str(3 * MOST_UNREAD - 1)
    assert recent.qsize() == 1
