"""The sender of the current request, and limits on what gradio does for a request."""

from collections import deque
from collections.abc import Iterator
from typing import NoReturn

import gradio as gr
from gradio import processing_utils
from gradio.context import LocalContext
from gradio.queueing import Queue
from gradio_client.utils import ServerMessage

from peft_core.access.visitors import LOCAL_USER, Visitor

MOST_UNREAD = 100  # messages of a session; an open page fetches each as it arrives


def refuse_downloads() -> None:
    """Prevent gradio from downloading a file by its URL.

    A request may give a URL where a component takes a file. Gradio then downloads it into memory, whatever
    its size, before any handler runs.
    """
    processing_utils.async_ssrf_protected_get = _refuse_download  # gradio's one function for such downloads


async def _refuse_download(url: str) -> NoReturn:
    refusal = f"This app does not download files from URLs, such as {url[:100]!r}. Upload the file."
    raise gr.Error(refusal, print_exception=False)


def local_visitor() -> Visitor:
    """Return the only user of an app that is not public; outside a request, the app itself."""
    request = LocalContext.request.get(None)  # gradio sets it for each call of a handler
    if request is None:
        return LOCAL_USER if _is_outside_handlers() else Visitor(owns_all=True)
    return Visitor(owns_all=True, may_name_files=_is_from_page_or_login(request))


def public_visitor() -> Visitor:
    """Return the visitor of a public app from the request's headers; outside a request, the app itself."""
    request = LocalContext.request.get(None)
    if request is None:
        return LOCAL_USER if _is_outside_handlers() else Visitor()
    return Visitor.from_headers(request.headers)


def _is_outside_handlers() -> bool:
    return LocalContext.blocks.get(None) is None


def _is_from_page_or_login(request: gr.Request) -> bool:
    """Return whether the sender may name files of this machine in settings: the page, or a logged-in user.

    The guard refuses an `Origin` or `Sec-Fetch-Site` header that is not the app's own, so a request that has
    one came from the page, or from a program that imitates it.
    """
    if getattr(request, "username", None):
        return True
    return "origin" in request.headers or request.headers.get("sec-fetch-site") == "same-origin"


def pending_sessions(queue: Queue) -> Iterator[str]:
    """Yield the session of each event that waits or is being processed.

    Also drop unread messages except the newest answers: gradio keeps all messages of a session.
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
