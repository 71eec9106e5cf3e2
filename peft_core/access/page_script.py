"""Insert a script into the page before gradio's own scripts.

Gradio adds the scripts of its `head` argument only after its first requests, but each request has to
identify the visitor.
"""

from starlette.datastructures import MutableHeaders

from peft_core.access.asgi import App, Message, Receive, Scope, Send
from peft_core.access.refusals import route_path

_HEAD = b"<head>"


class PageScript:
    """ASGI layer that inserts a script at the start of the head of the HTML page at `/`."""

    def __init__(self, app: App, script: str) -> None:
        self._app, self._tag = app, b"<script>" + script.encode() + b"</script>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) != "/" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        del headers["accept-encoding"]  # the page must arrive uncompressed
        await self._app({**scope, "headers": headers.raw}, receive, self._with_script(send))

    def _with_script(self, send: Send) -> Send:
        started: list[Message] = []
        body = bytearray()

        async def send_with_script(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            start = started.pop()
            headers = MutableHeaders(scope=start)
            page = bytes(body)
            if headers.get("content-type", "").startswith("text/html"):
                page = page.replace(_HEAD, _HEAD + self._tag, 1)
            headers["content-length"] = str(len(page))
            await send(start)
            await send({"type": "http.response.body", "body": page})

        return send_with_script
