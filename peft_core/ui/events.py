"""What every tab's handlers share: errors as one sentence, charts as components, files by a click."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.plot import AltairPlotData

from peft_core.downloads import describe_os_errors
from peft_core.errors import PeftCoreError, shorten
from peft_core.pictures.charts import Spec
from peft_core.pictures.pieces import message
from peft_core.ui.downloads import download_cache

PICK_A_RUN = message("Pick a finished run at the side first.", "note")
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
# For what follows its inputs: else a change that comes while an earlier one is answered would be dropped.
FOLLOWING = {**PRIVATE, "trigger_mode": "always_last"}
# Saves the file that a handler answered, as a click on a link to it would.
SAVE_FILE = """(file) => {
  const link = Object.assign(document.createElement('a'), { href: file.url, download: file.orig_name });
  link.click();
}"""


def sentence(handler: Callable) -> Callable:
    """The handler with domain errors shown as the one sentence that they hold; bugs pass through."""

    @functools.wraps(handler)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        try:
            return handler(*arguments, **named)
        except PeftCoreError as error:
            raise gr.Error(shorten(str(error)), print_exception=False) from error

    return wrapped


def sentence_each(handler: Callable[..., Iterator]) -> Callable:
    """As `sentence`, for a handler that yields."""

    @functools.wraps(handler)
    def wrapped(*arguments: Any, **named: Any) -> Iterator:
        try:
            yield from handler(*arguments, **named)
        except PeftCoreError as error:
            raise gr.Error(shorten(str(error)), print_exception=False) from error

    return wrapped


def plot(spec: Spec) -> AltairPlotData:
    """A Vega-Lite specification as the value of a gr.Plot, in the page's type and colours."""
    return AltairPlotData(chart="scatter", plot=json.dumps(spec))


def then_at_once(
    triggers: list[Any], handler: Callable, inputs: Any, outputs: Any, clear: Mapping[Any, Any] | None = None
) -> gr.events.Dependency:
    """Put values into components in the browser, then run a handler; returns the handler's dependency.

    Gradio's page runs the listeners of one event one after another, each when the one before has its
    answer. A listener that clears a place would so come after a slow neighbor, and wipe out what was
    answered in the meantime. Values that are put in by JavaScript take no time, and what follows by
    `then` delays no neighbor.

    Args:
        triggers: events such as `button.click`.
        handler: runs after each of them; what comes while it is answered is answered last (`always_last`).
        inputs: as in gradio.
        outputs: as in gradio.
        clear: the components to change at once, with their values or `gr.update` dictionaries.
    """
    return at_once(triggers, clear or {}).then(handler, inputs, outputs, **FOLLOWING)


def at_once(triggers: list[Any], values: Mapping[Any, Any]) -> gr.events.Dependency:
    """Put constant values into components in the browser, without asking the app."""
    constants = list(values.values())
    js = f"() => ({json.dumps(constants[0] if len(constants) == 1 else constants)})" if values else "() => {}"
    return gr.on(triggers, None, None, list(values), js=js, **PRIVATE)


def drop_answers(trigger: Any, *pending: gr.events.Dependency) -> None:
    """Have the page forget what it waits for: an answer about one run must not appear under another."""
    gr.on([trigger], None, cancels=list(pending), **PRIVATE)


def download_by_click(
    button: gr.Button, prepare: Callable[..., Path], inputs: list[Any], name: str
) -> gr.DownloadButton:
    """Wire a button to make a file and hand it to the browser; `prepare` returns the file's path."""
    hidden = gr.DownloadButton(elem_id=name, visible="hidden")

    @sentence
    def publish(*values: Any) -> str:
        with describe_os_errors("The file"):
            return download_cache().publish(prepare(*values))

    button.click(publish, inputs, hidden, api_visibility="private").success(
        fn=None, inputs=hidden, js=SAVE_FILE
    )
    return hidden
