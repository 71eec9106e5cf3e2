"""The gate of a public demo: rate limits for visitors, and protection of each visitor's sessions.

The gate is an ASGI layer between `RequestGuard` and gradio. Limits of an address apply to its network (see
`address.network_of`), since one customer has many IPv6 addresses. Limits of a visitor apply to a token, which
anyone can create: they provide fairness, while those of the address protect against floods.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import ceil

from starlette.datastructures import Headers

from peft_core.access.address import CLIENT_ADDRESS, network_of
from peft_core.access.asgi import App, Message, Receive, Scope, Send
from peft_core.access.bodies import BodyLimits, CallBodies, UploadBody, is_multipart, length_of
from peft_core.access.rates import Rate, Rates
from peft_core.access.refusals import Refusal, is_upload_route, route_path
from peft_core.access.sessions import Sender, Sessions, names_in_body, names_in_url, starts_event
from peft_core.access.upload_room import MIN_FILE_BYTES, UploadRoom
from peft_core.access.visitors import Visitor
from peft_core.service.limits import Limits

STATIC = ("/assets/", "/static/", "/svelte/", "/theme.css", "/gradio_api/theme.css", "/favicon.ico",
          "/gradio_api/custom_component/", "/manifest.json", "/pwa_icon", "/robots.txt")  # fmt: skip
_SLACK = 1_000_000  # bytes of an upload besides its files
NO_TOKEN = "no token"
_DEEP_LINK = re.compile(
    r"/deep_link\b"
)  # gradio's route that stores the state of a page, or shows a stored one
_MCP = "mcp"  # the user name that gradio's MCP server sends when it calls the app


@dataclass(frozen=True)
class GateLimits:
    """Limits for a visitor and for an address.

    A page sends about one request a second, and loads 150 static files at first.

    Attributes:
        visitor: Requests of a visitor, or of all visitors without a token from one address.
        address: Requests of an address: 30 open pages.
        static: Static files for an address.
        visitor_uploads: Uploads of a visitor.
        address_uploads: Uploads of an address.
        visitor_bytes: Bytes of a visitor's uploads; small files count as `MIN_FILE_BYTES`.
        address_bytes: Bytes of an address's uploads. One address alone cannot fill the upload folder
            (`RoomLimits`): in the 15 minutes that an upload may take to arrive and stay, 750 MB.
        open_per_address: Requests being answered for an address, including streams.
        open_total: Requests being answered in total.
        visitor_pending: Events of a visitor that are queued or running.
        address_pending: Events of an address that are queued or running.
        visitor_sessions: New sessions of a visitor; a page has one.
        address_sessions: New sessions of an address.
        bodies: Limits for the size and duration of a request body.
    """

    visitor: Rate = Rate(300, 200)
    address: Rate = Rate(1_800, 900)
    static: Rate = Rate(3_000, 1_500)
    visitor_uploads: Rate = Rate(20, 20)
    address_uploads: Rate = Rate(60, 60)
    visitor_bytes: Rate = Rate(20_000_000, 100_000_000)
    address_bytes: Rate = Rate(30_000_000, 300_000_000)
    open_per_address: int = 100
    open_total: int = 2_000
    visitor_pending: int = 30
    address_pending: int = 60
    visitor_sessions: Rate = Rate(2, 60)
    address_sessions: Rate = Rate(10, 200)
    bodies: BodyLimits = field(default_factory=BodyLimits)


class PublicGate:
    """ASGI layer in front of gradio that refuses floods, large bodies and other visitors' sessions."""

    def __init__(
        self,
        app: App,
        limits: Limits,
        gate_limits: GateLimits | None = None,
        *,
        room: UploadRoom | None = None,
        pending: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap an application.

        Args:
            app: Gradio's application.
            limits: Limits of the public demo.
            gate_limits: Limits of this gate.
            room: Bounds gradio's folder of uploads; None leaves it unbounded.
            pending: Returns the session of each event that is queued or running.
            clock: Returns seconds.
        """
        self._app, self._limits = app, gate_limits or GateLimits()
        self._rates = _GateRates(self._limits, clock)
        self._slots = _Slots(self._limits.open_per_address, self._limits.open_total)
        self._bodies = CallBodies(self._limits.bodies)
        self._sessions, self._room, self._pending = Sessions(), room, pending
        self._max_upload_bytes = self._limits.bodies.upload_files * limits.max_upload_bytes + _SLACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            network = network_of(CLIENT_ADDRESS.get())
            self._rates.check(scope, network)
            with self._slots.acquire(network):
                await self._answer(scope, receive, send, network)
        except Refusal as refusal:
            await refusal.send(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, network: str) -> None:
        headers = Headers(scope=scope)
        sender = Sender(_party_of(headers), network)
        if _DEEP_LINK.search(route_path(scope)) or b"deep_link" in scope.get("query_string", b""):
            raise Refusal(404, "This demo keeps no copies of pages. Share a run by its link.")
        self._claim(list(names_in_url(scope)), sender, is_session="upload" not in route_path(scope))
        if scope["type"] == "websocket" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        elif is_upload_route(scope):
            await self._answer_upload(scope, receive, send, headers=headers, network=network)
        else:
            await self._answer_call(scope, receive, send, headers=headers, sender=sender)

    async def _answer_upload(
        self, scope: Scope, receive: Receive, send: Send, *, headers: Headers, network: str
    ) -> None:
        length, limits = length_of(headers, self._max_upload_bytes), self._limits.bodies
        upload = UploadBody(headers, receive, max_bytes=length, limits=limits)
        size = length + limits.upload_files * MIN_FILE_BYTES
        async with self._room.reserve(size) if self._room else nullcontext():
            self._rates.check_bytes(scope, network, size)
            await upload.pass_to(self._app, scope, send)

    async def _answer_call(
        self, scope: Scope, receive: Receive, send: Send, *, headers: Headers, sender: Sender
    ) -> None:
        if is_multipart(headers) and not route_path(scope).startswith("/login"):
            raise Refusal(415, "This address does not accept files. Upload them at /gradio_api/upload.")
        async with self._bodies.read(headers, receive) as body:
            if body is None:
                return
            self._claim(list(names_in_body(body)), sender)
            if starts_event(scope):
                self._check_pending(sender)
            send_and_assign = self._sessions.assign_event(scope, sender, send)
            await self._app(scope, _replay(body, receive), send_and_assign)

    def _claim(self, names: Sequence[object], sender: Sender, *, is_session: bool = True) -> None:
        """Assign names to a sender.

        Raises:
            Refusal: A name belongs to another party, or the sender begins too many new sessions.
        """
        if is_session and any(isinstance(name, str) and self._sessions.owner(name) is None for name in names):
            visitor = sender.network if sender.party == NO_TOKEN else sender.party
            self._rates.check_session(visitor, sender.network)
        self._sessions.check(names, sender)

    def _check_pending(self, sender: Sender) -> None:
        """Raise a Refusal if a visitor or an address has too many events queued or running."""
        owners = [owner for name in self._pending() if (owner := self._sessions.owner(name))]
        of_address = sum(owner.network == sender.network for owner in owners)
        of_visitor = sum(owner.party == sender.party != NO_TOKEN for owner in owners)
        if of_visitor >= self._limits.visitor_pending or of_address >= self._limits.address_pending:
            raise Refusal(
                429, "Too many of your requests are still being processed. Try again in 10 seconds.", 10
            )


class _GateRates:
    """The token buckets of visitors and addresses."""

    def __init__(self, limits: GateLimits, clock: Callable[[], float]) -> None:
        self._static = Rates(limits.static, clock=clock)
        self._calls = (Rates(limits.address, clock=clock), Rates(limits.visitor, clock=clock))
        self._uploads = (
            Rates(limits.address_uploads, clock=clock),
            Rates(limits.visitor_uploads, clock=clock),
        )
        self._bytes = (Rates(limits.address_bytes, clock=clock), Rates(limits.visitor_bytes, clock=clock))
        self._sessions = (
            Rates(limits.address_sessions, clock=clock),
            Rates(limits.visitor_sessions, clock=clock),
        )

    def check(self, scope: Scope, network: str) -> None:
        """Raise a Refusal if an address or a visitor sends requests too often."""
        if route_path(scope).startswith(STATIC):
            _refuse_if_early(self._static.check(network), "requests")
            return
        visitor = _visitor_of(scope, network)
        rates = [(self._calls, "requests")]
        if is_upload_route(scope):
            rates.append((self._uploads, "uploads"))
        for (addresses, visitors), noun in rates:
            _refuse_if_early(addresses.check(network), noun)
            _refuse_if_early(visitors.check(visitor), noun)

    def check_bytes(self, scope: Scope, network: str, size: int) -> None:
        """Raise a Refusal if an address or a visitor uploads too much."""
        addresses, visitors = self._bytes
        _refuse_if_early(visitors.check(_visitor_of(scope, network), size), "uploaded bytes")
        _refuse_if_early(addresses.check(network, size), "uploaded bytes")

    def check_session(self, visitor: str, network: str) -> None:
        """Raise a Refusal if an address or a visitor begins too many sessions."""
        addresses, visitors = self._sessions
        _refuse_if_early(visitors.check(visitor), "new pages")
        _refuse_if_early(addresses.check(network), "new pages")


class _Slots:
    """Counts the requests that are being answered."""

    def __init__(self, per_address: int, total: int) -> None:
        self._per_address, self._total = per_address, total
        self._open: Counter[str] = Counter()

    @contextmanager
    def acquire(self, network: str) -> Iterator[None]:
        """Count a request as open until the block ends.

        Raises:
            Refusal: 429 if its address has too many open requests, 503 if all addresses together have.
        """
        if self._open.total() >= self._total:
            raise Refusal(503, "This demo has as many visitors as it can serve. Try again in a minute.", 60)
        if self._open[network] >= self._per_address:
            raise Refusal(
                429,
                f"Your address has {self._per_address} requests open, the most that this demo allows. "
                "Close other tabs, and try again in 10 seconds.",
                10,
            )
        self._open[network] += 1
        try:
            yield
        finally:
            self._open[network] -= 1
            if not self._open[network]:
                del self._open[network]


def _refuse_if_early(wait: float, noun: str) -> None:
    if wait:
        seconds = ceil(wait)
        when = "a second" if seconds == 1 else f"{seconds} seconds"
        raise Refusal(429, f"Too many {noun} in a short time. Try again in {when}.", seconds)


def _visitor_of(scope: Scope, network: str) -> str:
    """Return the key of the visitor's limits; all requests without a token from one address share a key."""
    return Visitor.from_headers(Headers(scope=scope)).owner or f"no token, {network}"


def _party_of(headers: Headers) -> str:
    """Return the party whose sessions a request may use.

    Gradio's MCP server calls the app through one client of its own, which sends the visitor's token with some
    requests and omits it from others. It is therefore a party of its own. Impersonating it gains nothing: the
    name of its session is random and never leaves this process in an answer.
    """
    if headers.get("x-gradio-user") == _MCP:
        return _MCP
    return Visitor.from_headers(headers).owner or NO_TOKEN


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first returns a body which was already read, and then the next messages."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
