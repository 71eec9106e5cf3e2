"""What every tab's handlers share: errors as one sentence, charts as components, files by a click."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.components.plot import AltairPlotData

from peft_core.errors import PeftCoreError
from peft_core.pictures.charts import Spec
from peft_core.pictures.pieces import message

PICK_A_RUN = message("Pick a finished run at the side first.", "note")
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
# For what follows its inputs: else a change that comes while an earlier one is answered would be dropped.
FOLLOWING = {**PRIVATE, "trigger_mode": "always_last"}


def sentence(handler: Callable) -> Callable:
    """The handler with domain errors shown as the one sentence that they hold; bugs pass through."""

    @functools.wraps(handler)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        try:
            return handler(*arguments, **named)
        except PeftCoreError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def sentence_each(handler: Callable[..., Iterator]) -> Callable:
    """As `sentence`, for a handler that yields."""

    @functools.wraps(handler)
    def wrapped(*arguments: Any, **named: Any) -> Iterator:
        try:
            yield from handler(*arguments, **named)
        except PeftCoreError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def plot(spec: Spec) -> AltairPlotData:
    """A Vega-Lite specification as the value of a gr.Plot, in the page's type and colours."""
    return AltairPlotData(chart="scatter", plot=json.dumps(spec))


def download_by_click(
    button: gr.Button, prepare: Callable, inputs: list[Any], name: str
) -> gr.DownloadButton:
    """Wire a button to make a file and hand it to the browser; `prepare` returns the file's path."""
    hidden = gr.DownloadButton(elem_id=name, visible="hidden")
    button.click(prepare, inputs, hidden, api_visibility="private").success(
        fn=None, js=f"() => setTimeout(() => document.querySelector('#{name}').click(), 150)"
    )
    return hidden
