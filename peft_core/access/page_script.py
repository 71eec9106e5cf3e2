"""Put a script into the page ahead of gradio's own.

Gradio adds the scripts that it is given (`head`) once it has sent its first requests, of which each has to
say who the visitor is.
"""

from starlette.datastructures import MutableHeaders

from peft_core.access.asgi import App, Message, Receive, Scope, Send
from peft_core.access.refusals import route_path

_HEAD = b"<head>"


class PageScript:
    """An ASGI layer that begins the head of the HTML page at `/` with a script."""

    def __init__(self, app: App, script: str) -> None:
        self._app, self._tag = app, b"<script>" + script.encode() + b"</script>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) != "/" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        del headers["accept-encoding"]  # the page must come as it is written
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
