"""Which requests the app answers at all: those of its own pages, and those of programs.

A web page from elsewhere can send requests to a server on its visitor's machine, and can read the answers
once it reaches the server under a name of its own (DNS rebinding). It cannot choose three headers, which the
browser writes:

- `Host`, the name under which the server was reached. Only the names of `AllowedHosts` are answered, so that
  a page's own name that leads here (or `x.localhost`) is refused.
- `Origin`, which page sent the request: there on each request but a plain GET. One other than the app's own
  is refused, whatever the method; so are `null` and another port of this machine.
- `Sec-Fetch-Site`, which relation that page has to the server: there on each request to a loopback address or
  by HTTPS, plain GETs too. Only `same-origin` and `none` (typed, or a bookmark) are answered.

Programs such as curl, gradio_client and MCP clients send neither of the last two.

Sources: W3C Fetch Metadata Request Headers, RFC 6454, and the MCP specification, which demands that servers
validate Origin.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from peft_core.access.address import CLIENT_ADDRESS
from peft_core.access.hosts import AllowedHosts

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]

SHARED_PAGES = "https://gradio.s3-us-west-2.amazonaws.com"  # gradio loads the page of a share link from there
HUGGING_FACE = ("https://huggingface.co", "https://*.huggingface.co", "https://hf.co")
_CORS_PREFIX = "access-control-"
_MOST_LOGGED = 20
_OWN_SITES = ("same-origin", "none")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PagePolicy:
    """What other sites may do with the page.

    Attributes:
        links: whether a link on another site may open it, as for an app that strangers are told of.
        frames: the origins that may show it in a frame.
        scripts: the origins besides its own that the page loads its code from.
    """

    links: bool = False
    frames: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()

    def headers(self) -> dict[str, str]:
        """The response headers that a browser enforces it by."""
        return {
            "Content-Security-Policy": self._content_security_policy(),
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }

    def _content_security_policy(self) -> str:
        """As strict as gradio bears: it starts by an inline script, evaluates `js=` and draws with blobs."""
        own = " ".join(("'self'", *self.scripts))
        directives = {
            "default-src": own,
            "script-src": f"{own} 'unsafe-inline' 'unsafe-eval'",
            "style-src": f"{own} 'unsafe-inline'",
            "img-src": f"{own} data: blob:",
            "font-src": f"{own} data:",
            "media-src": f"{own} data: blob:",
            "worker-src": f"{own} blob:",
            "frame-src": f"{own} blob:",
            "object-src": "'none'",
            "base-uri": "'self'",
            "form-action": "'self'",
            "frame-ancestors": " ".join(("'self'", *self.frames)),
        }
        return "; ".join(f"{name} {value}" for name, value in directives.items())


class RequestGuard:
    """The outermost ASGI application: refuses foreign requests, and takes CORS permissions from answers."""

    def __init__(self, app: App, hosts: AllowedHosts, policy: PagePolicy) -> None:
        self._app, self._hosts, self._policy = app, hosts, policy
        self._headers = policy.headers()
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refuse(scope)
        if refusal is None:
            CLIENT_ADDRESS.set(scope["client"][0] if scope.get("client") else "unknown")
            await self._app(scope, receive, self._harden(send))
            return
        self._log(refusal)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before it is accepted: 403
            return
        await PlainTextResponse(refusal, 403, self._headers)(scope, receive, send)

    def _refuse(self, scope: Scope) -> str | None:
        """Why a request is not answered, in one sentence; None if it is."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        address = scope["server"][0] if scope.get("server") else None
        if len(hosts) != 1 or not self._hosts.is_named(hosts[0], address):
            return (
                f"This app does not answer under the name {_quote(hosts)}. If that is its own, start it with "
                "--allow-host and the name."
            )
        origins = headers.getlist("origin")
        if origins and not (len(origins) == 1 and self._hosts.is_own_origin(origins[0], hosts[0])):
            return (
                f"This app does not answer the pages of {_quote(origins)}. If it is served under that name, "
                "start it with --allow-host and the name."
            )
        site = headers.get("sec-fetch-site", "none")
        if site not in _OWN_SITES and not self._is_visit(scope, headers):
            return "This app does not answer another site's page. Type its address, or open it by a bookmark."
        return None

    def _is_visit(self, scope: Scope, headers: Headers) -> bool:
        """Whether a link on another site, or a frame of one that may have it, opens the page itself."""
        targets = {"document"} if self._policy.links else set()
        if self._policy.frames:
            targets.add("iframe")
        return (
            scope["type"] == "http"
            and scope["method"] in ("GET", "HEAD")
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") in targets
        )

    def _harden(self, send: Send) -> Send:
        async def send_hardened(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers.keys() if name.startswith(_CORS_PREFIX)]:  # noqa: SIM118
                    del headers[name]
                headers.update(self._headers)
            await send(message)

        return send_hardened

    def _log(self, refusal: str) -> None:
        """Tell whoever started the app, once for each reason and for so many only."""
        if len(self._logged) < _MOST_LOGGED and refusal not in self._logged:
            self._logged.add(refusal)
            _logger.warning("Refused a request. %s", refusal)


def guard(
    hosts: AllowedHosts, policy: PagePolicy
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """A lifespan for gradio's `app_kwargs` that puts the guard before all of gradio's own middleware.

    The server runs it before it listens. Middleware that is given to `app_kwargs` would come after gradio's
    CORS middleware, which answers preflight requests itself.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.middleware_stack = RequestGuard(app.middleware_stack, hosts, policy)
        yield

    return lifespan


def _quote(values: list[str]) -> str:
    """Header values in an answer or a log: escaped, and only so much of them."""
    return repr(", ".join(values)[:100])
