"""Refuse requests from other websites; answer the app's own page and programs.

A website can make its visitor's browser send requests to a server on the visitor's machine, and with DNS
rebinding it can read the answers too. It cannot set these headers, which the browser writes:

- `Host`: the name under which the server was reached. Only the names of `AllowedHosts` are answered, so that
  a website's own name that resolves to this machine (or `x.localhost`) is refused.
- `Origin`: the page that sent the request. Browsers omit it from GET and HEAD requests that need no CORS. Any
  origin but the app's own is refused for every method, including `null` and other ports of this machine.
- `Sec-Fetch-Site`: the relation of that page to the server. Browsers send it since March 2023, to loopback
  and HTTPS addresses only. `same-origin` is answered. `none` (an address that was typed, bookmarked or
  clicked in another program) may only open the page, since it may have been redirected.

Programs such as curl, gradio_client and MCP clients send neither of the last two. On plain HTTP in a network
a GET from another website looks like that of a program; `/logout`, the one GET with an effect, therefore
requires proof.

Gradio also fetches internet addresses for any client (`/file=https://…`) and serves the content from its own
origin. This is refused for everyone, since a script in that content would run as the app's.

Sources: W3C Fetch Metadata Request Headers, RFC 6454, and the MCP specification, which requires servers to
validate Origin.
"""

import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from peft_core.access.address import CLIENT_ADDRESS, client_address
from peft_core.access.asgi import App, Message, Receive, Scope, Send
from peft_core.access.hosts import AllowedHosts, is_network_address

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]

SHARED_PAGES = (
    "https://gradio.s3-us-west-2.amazonaws.com"  # the page of a share link loads its code from here
)
HUGGING_FACE = ("https://huggingface.co", "https://*.huggingface.co", "https://hf.co")
_CORS_PREFIX = "access-control-"
_MAX_LOGGED = 20
_FETCHES_URL = re.compile(r"/file[=/]+(https?:|//)", re.IGNORECASE)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PagePolicy:
    """What other sites may do with the page.

    Attributes:
        links: Whether a link on another site may open the page.
        frames: Origins that may show the page in a frame.
        scripts: Origins besides its own from which the page loads code.
    """

    links: bool = False
    frames: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()

    def headers(self) -> dict[str, str]:
        """Return the response headers for this policy."""
        return {
            "Content-Security-Policy": self._content_security_policy(),
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }

    def _content_security_policy(self) -> str:
        """Return the strictest policy under which gradio's page works: it needs inline scripts and `eval`."""
        own = " ".join(("'self'", *self.scripts))
        directives = {
            "default-src": own,
            "script-src": f"{own} 'unsafe-inline' 'unsafe-eval'",
            "style-src": f"{own} 'unsafe-inline'",
            "img-src": f"{own} data: blob:",
            "frame-src": "'none'",
            "object-src": "'none'",
            "base-uri": "'self'",
            "form-action": "'self'",
            "frame-ancestors": " ".join(("'self'", *self.frames)),
        }
        return "; ".join(f"{name} {value}" for name, value in directives.items())


class RequestGuard:
    """Outermost ASGI layer: refuses requests from other sites and removes CORS headers from responses."""

    def __init__(self, app: App, hosts: AllowedHosts, policy: PagePolicy, *, proxies: int = 0) -> None:
        self._app, self._hosts, self._policy, self._proxies = app, hosts, policy, proxies
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        reason = self._refuse(scope)
        if reason is None:
            CLIENT_ADDRESS.set(client_address(scope, self._proxies))
            await self._app(self._without_foreign_names(scope), receive, self._harden(scope, send))
            return
        self._log(reason)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before it is accepted: 403
            return
        await PlainTextResponse(reason, 403, self._policy.headers())(scope, receive, send)

    def _refuse(self, scope: Scope) -> str | None:
        """Return why a request is refused, in one sentence; None if it is answered."""
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._is_allowed_host(scope, hosts[0]):
            return (
                f"This app does not accept requests for the host {_quote(hosts)}. If that is its own name, "
                "start it with --allow-host and the name."
            )
        if origins and not (len(origins) == 1 and self._is_own(scope, origins[0], hosts[0])):
            return (
                f"This app does not accept requests from pages of {_quote(origins)}. If it is served under "
                "that name, start it with --allow-host and the name."
            )
        site = headers.get("sec-fetch-site")
        if site not in (None, "same-origin") and not self._is_visit(scope, headers):
            if site == "none":
                return "This app does not accept direct requests for this address. Open its page instead."
            return (
                "This app does not accept requests from another site's page. Type its address, or open it "
                "from a bookmark."
            )
        if scope["path"].startswith("/logout") and not self._is_from_page(scope, headers, hosts[0]):
            return "This app does not accept links to /logout. Log out on its page."
        if _FETCHES_URL.search(scope["path"]):
            return "This app does not fetch files from the internet. Upload the file."
        return None

    def _is_allowed_host(self, scope: Scope, host: str) -> bool:
        return self._hosts.is_allowed(host, scope["server"][0] if scope.get("server") else None)

    def _is_own(self, scope: Scope, origin: str, host: str) -> bool:
        scheme: str = scope.get("scheme", "http")
        return self._hosts.is_own_origin(origin, host, {"ws": "http", "wss": "https"}.get(scheme, scheme))

    def _is_visit(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a typed address, or a link or frame that the policy allows, loads the page `/`."""
        may_open = self._policy.links or headers["sec-fetch-site"] == "none"
        targets = {"document"} if may_open else set()
        if self._policy.frames:
            targets.add("iframe")
        return (
            scope["type"] == "http"
            and scope["method"] in ("GET", "HEAD")
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") in targets
        )

    def _is_from_page(self, scope: Scope, headers: Headers, host: str) -> bool:
        """Return whether the headers prove that the app's own page sent the request."""
        if "origin" in headers or headers.get("sec-fetch-site") == "same-origin":
            return True
        origin = "/".join(headers.get("referer", "").split("/")[:3])
        return self._is_own(scope, origin, host)

    def _without_foreign_names(self, scope: Scope) -> Scope:
        """Return the scope without headers that would make gradio accept another host name as its own."""
        headers = MutableHeaders(raw=list(scope["headers"]))
        forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        if not self._is_allowed_host(scope, forwarded):
            del headers["x-forwarded-host"]
        del headers["x-gradio-server"]
        return {**scope, "headers": headers.raw}

    def _harden(self, scope: Scope, send: Send) -> Send:
        """Wrap `send` to remove CORS headers, add the policy's, and forbid scripts in opened files."""
        policy = self._policy.headers()
        if "/file" in scope["path"]:
            policy["Content-Security-Policy"] = "sandbox; default-src 'none'"
        if not is_network_address(Headers(scope=scope)["host"]):  # there browsers warn that they ignore it
            policy["Cross-Origin-Opener-Policy"] = "same-origin"

        async def send_hardened(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers.keys() if name.startswith(_CORS_PREFIX)]:  # noqa: SIM118
                    del headers[name]
                headers.update(policy)
            await send(message)

        return send_hardened

    def _log(self, reason: str) -> None:
        """Log each reason once, at most `_MAX_LOGGED` of them."""
        if len(self._logged) < _MAX_LOGGED and reason not in self._logged:
            self._logged.add(reason)
            _logger.warning("Refused a request. %s", reason)


def guard_lifespan(
    hosts: AllowedHosts,
    policy: PagePolicy,
    layers: Sequence[Callable[[App], App]] = (),
    *,
    proxies: int = 0,
) -> Lifespan:
    """Return a lifespan for gradio's `app_kwargs` that wraps the app's middleware in `RequestGuard`.

    The server runs it before it listens. Middleware passed in `app_kwargs` would come after gradio's CORS
    middleware, which answers preflight requests itself.

    Args:
        hosts: The host names that are answered.
        policy: What other sites may do with the page.
        layers: Further layers between the guard and the app, outermost first.
        proxies: Number of proxies in front of the app that append to X-Forwarded-For.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        inner: App | None = app.middleware_stack
        assert inner is not None  # Starlette builds it before it runs the lifespan
        for layer in reversed(layers):
            inner = layer(inner)
        app.middleware_stack = RequestGuard(inner, hosts, policy, proxies=proxies)
        yield

    return lifespan


def _quote(values: list[str]) -> str:
    """Return header values for an answer or a log: escaped, and at most 100 characters of them."""
    return repr(", ".join(values)[:100])
