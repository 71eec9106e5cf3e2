"""Event wiring that every tab shares: listener options, error messages, plots, and downloads."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar

import gradio as gr
from gradio.components.plot import AltairPlotData
from gradio.events import Dependency

from peft_core.errors import PeftCoreError, shorten
from peft_core.service.downloads import translate_os_errors
from peft_core.ui.downloads import download_cache
from peft_core.views.charts import Spec
from peft_core.views.components import message

PICK_A_RUN = message("Pick a finished run at the side first.", "note")
# Save the file that a handler returned, as a click on a link to it would.
SAVE_FILE = """(file) => {
  const link = Object.assign(document.createElement('a'), { href: file.url, download: file.orig_name });
  link.click();
}"""
Trigger = Callable[..., Dependency]  # an event of a component, such as `button.click`
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class PrivateOptions(TypedDict):
    """Options of an event listener that is not part of the API and shows no progress animation."""

    api_visibility: Literal["private"]
    show_progress: Literal["hidden"]


class FollowingOptions(PrivateOptions):
    """Options of a listener that follows its inputs."""

    trigger_mode: Literal["always_last"]


PRIVATE: PrivateOptions = {"api_visibility": "private", "show_progress": "hidden"}
# Without `always_last` gradio drops a change that comes while an earlier one is being answered.
FOLLOWING: FollowingOptions = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "trigger_mode": "always_last",
}


def show_errors(handler: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Return the handler with domain errors shown as a message on the page; bugs pass through."""

    @functools.wraps(handler)
    def wrapped(*arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        try:
            return handler(*arguments, **options)
        except PeftCoreError as error:
            raise gr.Error(shorten(str(error)), print_exception=False) from error

    return wrapped


def show_stream_errors(
    handler: Callable[Arguments, Iterator[Answer]],
) -> Callable[Arguments, Iterator[Answer]]:
    """Return the handler as `show_errors` does, for a handler that yields."""

    @functools.wraps(handler)
    def wrapped(*arguments: Arguments.args, **options: Arguments.kwargs) -> Iterator[Answer]:
        try:
            yield from handler(*arguments, **options)
        except PeftCoreError as error:
            raise gr.Error(shorten(str(error)), print_exception=False) from error

    return wrapped


def plot(spec: Spec) -> AltairPlotData:
    """Return a Vega-Lite specification as the value of a gr.Plot, in the page's font and colors."""
    return AltairPlotData(chart="scatter", plot=json.dumps(spec))


def set_values_then(
    triggers: Sequence[Trigger],
    handler: Callable[..., Any],
    inputs: Any,
    outputs: Any,
    clear: Mapping[Any, Any] | None = None,
) -> Dependency:
    """Set component values in the browser, then run a handler; return the handler's dependency.

    Gradio's page runs the listeners of one event in turn, each once the one before it is answered. A
    listener that clears an output would wait for a slow one before it, and clear what was answered in the
    meantime. Values set by JavaScript take no time, and a handler attached by `then` delays no other
    listener.

    Args:
        triggers: events such as `button.click`.
        handler: runs after each event, with the options `FOLLOWING`.
        inputs: as in gradio.
        outputs: as in gradio.
        clear: the components to set in the browser, with their values or `gr.update` dictionaries.
    """
    return set_values(triggers, clear or {}).then(handler, inputs, outputs, **FOLLOWING)


def set_values(triggers: Sequence[Trigger], values: Mapping[Any, Any]) -> Dependency:
    """Set components to constant values in the browser, without a request to the app."""
    constants = list(values.values())
    js = f"() => ({json.dumps(constants[0] if len(constants) == 1 else constants)})" if values else "() => {}"
    return gr.on(triggers, None, None, list(values), js=js, **PRIVATE)


def cancel_pending(trigger: Trigger, *pending: Dependency) -> None:
    """Cancel pending events on a trigger: an answer about one run must not appear under another."""
    gr.on([trigger], None, cancels=list(pending), **PRIVATE)


def download_by_click(
    button: gr.Button, prepare: Callable[..., Path], inputs: list[Any], name: str
) -> gr.DownloadButton:
    """Wire a button to write a file and download it.

    Args:
        button: the button to click.
        prepare: writes the file and returns its path.
        inputs: components whose values `prepare` takes.
        name: elem_id of the hidden download button, which is returned.
    """
    hidden = gr.DownloadButton(elem_id=name, visible="hidden")

    @show_errors
    def publish(*values: Any) -> str:
        with translate_os_errors("The file"):
            return download_cache().publish(prepare(*values))

    button.click(publish, inputs, hidden, api_visibility="private").success(
        fn=None, inputs=hidden, js=SAVE_FILE
    )
    return hidden
