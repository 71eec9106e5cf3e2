"""Refusals by the gate of a public demo: an HTTP status, a message, and when to try again."""

import math
import re

from starlette.responses import JSONResponse, PlainTextResponse, Response

from peft_core.access.asgi import Receive, Scope, Send

_UPLOAD = re.compile(r"(?:/gradio_api)?/upload/?")


class Refusal(Exception):
    """A request that is refused.

    Args:
        status: The HTTP status.
        message: A sentence for the user.
        retry_after: Seconds after which the request may be sent again; None if it would be refused then too.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with this refusal."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        await self._response(scope)(scope, receive, send)

    def _response(self, scope: Scope) -> Response:
        """Return JSON for a call, and plain text otherwise.

        Gradio's page shows `detail` for a call that joins the queue, `error` for one that does not, and the
        text for an upload.
        """
        headers = {"Cache-Control": "no-store"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after))
        if scope["method"] in ("GET", "HEAD") or is_upload_route(scope):
            return PlainTextResponse(self.message, self.status, headers)
        return JSONResponse({"detail": self.message, "error": self.message}, self.status, headers)


def is_upload_route(scope: Scope) -> bool:
    """Return whether the path is that of gradio's upload route."""
    return _UPLOAD.fullmatch(route_path(scope)) is not None


def route_path(scope: Scope) -> str:
    """Return the path as the application's routes see it, without the prefix of a mounted app."""
    return scope["path"].removeprefix(scope.get("root_path", ""))
