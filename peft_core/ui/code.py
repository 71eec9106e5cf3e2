"""Code to copy: a plain script, and calls of the app's API in Python, curl and MCP."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from peft_core.errors import PeftCoreError
from peft_core.export.snippets import ApiAccess
from peft_core.service.workbench import Workbench

_API = {"python": "API: Python", "curl": "API: curl", "mcp": "API: MCP"}
_LANGUAGES = {"curl": "shell", "mcp": "json"}


def code_kinds(plain: str, elem_id: str) -> gr.Radio:
    """Return the choice of code by the kinds that `Workbench.code` takes; `plain` labels the script."""
    choices = [(plain, "script"), *((title, name) for name, title in _API.items())]
    return gr.Radio(choices, value="script", show_label=False, elem_id=elem_id)


def code_view(elem_id: str) -> gr.Code:
    """Return the component that shows the code, with a copy button."""
    return gr.Code(language="python", interactive=False, show_label=False, elem_id=elem_id, max_lines=24)


def code_update(write: Callable[[], str], kind: str) -> Any:
    """Return an update with the code that `write` returns, highlighted; a PeftCoreError becomes a comment."""
    try:
        return gr.update(value=write(), language=_LANGUAGES.get(kind, "python"))
    except PeftCoreError as error:
        return gr.update(value=f"# {error}", language="python")


def api_access(workbench: Workbench, request: gr.Request) -> ApiAccess:
    """Return how a program reaches this app at the address that the visitor's browser uses."""
    assert request.request is not None  # gradio passes a handler the request of the browser
    return ApiAccess(
        url=str(request.request.base_url).rstrip("/"),
        login=bool(request.username),
        token=workbench.limits is not None,
    )
