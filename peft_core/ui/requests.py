"""Who sent the request that is being answered, and what gradio may do for one."""

from collections import deque
from collections.abc import Iterator
from typing import NoReturn

import gradio as gr
from gradio import processing_utils
from gradio.context import LocalContext
from gradio.queueing import Queue
from gradio.server_messages import ServerMessage

from peft_core.access.visitors import LOCAL_USER, Visitor

MOST_UNREAD = 100  # messages of a session; a page fetches each as it comes


def refuse_downloads() -> None:
    """Have gradio fetch no file by its address.

    A request may give an address of the internet where a component takes a file. Gradio then downloads it
    into memory, however large, before any handler runs.
    """
    processing_utils.async_ssrf_protected_get = _refuse_download  # by which gradio fetches every such file


async def _refuse_download(url: str) -> NoReturn:
    sentence = f"This app fetches no file from an address, such as {url[:100]!r}. Upload the file."
    raise gr.Error(sentence, print_exception=False)


def local_visitor() -> Visitor:
    """The one user of an app that is not public; outside a request it is the app itself that asks."""
    request = LocalContext.request.get(None)  # gradio sets it for each call of a handler
    if request is None:
        return LOCAL_USER if _is_outside_handlers() else Visitor(owns_all=True)
    return Visitor(owns_all=True, may_name_files=_is_from_page_or_login(request))


def public_visitor() -> Visitor:
    """The visitor of a public app by the headers of the request; outside a request, the app itself."""
    request = LocalContext.request.get(None)
    if request is None:
        return LOCAL_USER if _is_outside_handlers() else Visitor()
    return Visitor.from_headers(request.headers)


def _is_outside_handlers() -> bool:
    return LocalContext.blocks.get(None) is None


def _is_from_page_or_login(request: gr.Request) -> bool:
    """Whether the sender may name files of this machine in settings: the page, or anyone who logged in.

    The guard refuses an `Origin` and a `Sec-Fetch-Site` that are not the app's own, so a request that has one
    came from the page, or from a program that imitates it.
    """
    if getattr(request, "username", None):
        return True
    return "origin" in request.headers or request.headers.get("sec-fetch-site") == "same-origin"


def pending_sessions(queue: Queue) -> Iterator[str]:
    """The session of each event that waits or is worked on.

    Of messages that nobody fetches the newest answers stay: gradio keeps all of a session's.
    """
    for messages in list(queue.pending_messages_per_session.values()):
        if messages.qsize() > MOST_UNREAD:
            answers = [
                message for message in messages._queue if message.msg == ServerMessage.process_completed
            ]
            messages._queue = deque(answers[-MOST_UNREAD // 2 :])
    for waiting in list(queue.event_queue_per_concurrency_id.values()):
        yield from (event.session_hash for event in list(waiting.queue))
    for job in list(queue.active_jobs):
        yield from (event.session_hash for event in job or ())
