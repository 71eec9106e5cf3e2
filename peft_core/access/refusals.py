"""How the gate of a public demo says no: a status, one sentence, and when to try again."""

import math
import re

from starlette.responses import JSONResponse, PlainTextResponse, Response

from peft_core.access.asgi import Receive, Scope, Send

_UPLOAD = re.compile(r"(?:/gradio_api)?/upload/?")


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: the HTTP status.
        sentence: what a person reads.
        retry_after: the seconds after which it may be sent again; None if it will not be answered then.
    """

    def __init__(self, status: int, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        await self._response(scope)(scope, receive, send)

    def _response(self, scope: Scope) -> Response:
        """JSON for a call, text for anything else.

        Gradio's page shows `detail` of a call that joins the queue, `error` of one that does not, and the
        text of an upload.
        """
        headers = {"Cache-Control": "no-store"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after))
        if scope["method"] in ("GET", "HEAD") or is_upload_route(scope):
            return PlainTextResponse(self.sentence, self.status, headers)
        return JSONResponse({"detail": self.sentence, "error": self.sentence}, self.status, headers)


def is_upload_route(scope: Scope) -> bool:
    """Whether the path is that of gradio's route for files."""
    return _UPLOAD.fullmatch(route_path(scope)) is not None


def route_path(scope: Scope) -> str:
    """The path as the application's routes see it: without the prefix under which the app is mounted."""
    return scope["path"].removeprefix(scope.get("root_path", ""))
