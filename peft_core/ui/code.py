"""Code to copy: a plain program, and the app's own API in three languages."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from peft_core.errors import PeftCoreError
from peft_core.export.snippets import ApiAccess
from peft_core.workbench import Workbench

_API = {"python": "API: Python", "curl": "API: curl", "mcp": "API: MCP"}
_LANGUAGES = {"curl": "shell", "mcp": "json"}


def code_kinds(plain: str, elem_id: str) -> gr.Radio:
    """What there is to copy, under the names that `code` takes; `plain` is the label of the program."""
    choices = [(plain, "script"), *((title, name) for name, title in _API.items())]
    return gr.Radio(choices, value="script", show_label=False, elem_id=elem_id)


def code_view(elem_id: str) -> gr.Code:
    """Where it is shown, with a button that copies it."""
    return gr.Code(language="python", interactive=False, show_label=False, elem_id=elem_id, max_lines=24)


def shown(write: Callable[[], str], kind: str) -> Any:
    """An update with what `write` gives, in the colours of its language; an error is a comment."""
    try:
        return gr.update(value=write(), language=_LANGUAGES.get(kind, "python"))
    except PeftCoreError as error:
        return gr.update(value=f"# {error}", language="python")


def api_access(workbench: Workbench, request: gr.Request) -> ApiAccess:
    """How a program reaches this app at the address that the visitor's browser has for it."""
    return ApiAccess(
        url=str(request.request.base_url).rstrip("/"),
        login=bool(request.username),
        token=workbench.limits is not None,
    )
