"""Sessions of gradio keep nothing of what people type, and pages look as often as something moves."""

from pathlib import Path

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from peft_core import runs
from peft_core.config import TrainConfig
from peft_core.ui.page import build_page
from peft_core.ui.train import IDLE_TICK, TICK, _seconds_between_looks
from peft_core.workbench import Workbench


def test_session_keeps_no_value_that_was_typed(tmp_path: Path) -> None:
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
def test_page_looks_each_second_while_its_run_moves(public: bool, tmp_path: Path) -> None:
    workbench = Workbench.open(tmp_path / "runs", public=public)
    run = runs.create(workbench.runs_dir, TrainConfig())
    assert _seconds_between_looks(workbench, run.run_id) == TICK
    run.update(status="KILLED")
    for run_id in (run.run_id, None, "no-run"):
        assert _seconds_between_looks(workbench, run_id) == (IDLE_TICK if public else TICK)
