"""The gate of a public demo: how much strangers may ask, and that nobody uses another's session.

It stands behind `RequestGuard` and in front of gradio. Limits of an address hold for its network (see
`address.network_of`), since one customer has many addresses of IPv6; limits of a visitor hold for a token,
which costs nothing to make, so they are there for fairness and those of the address against floods.
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
from peft_core.access.upload_room import LEAST_FILE_BYTES, UploadRoom
from peft_core.access.visitors import Visitor
from peft_core.limits import Limits

STATIC = ("/assets/", "/static/", "/svelte/", "/theme.css", "/gradio_api/theme.css", "/favicon.ico",
          "/gradio_api/custom_component/", "/manifest.json", "/pwa_icon", "/robots.txt")  # fmt: skip
_SLACK = 1_000_000  # bytes of an upload besides its files
NO_TOKEN = "no token"
_OPENS_COPY = re.compile(r"/deep_link\b")  # by which gradio keeps what is in a page, or shows what it kept
_MCP = "mcp"  # what gradio's MCP server calls itself when it calls the app


@dataclass(frozen=True)
class GateLimits:
    """How much a visitor and an address may ask.

    A page asks about once a second, and for 150 static files at first.

    Attributes:
        visitor: requests of a visitor, or of all without a token from one address.
        address: requests of an address: 30 open pages.
        static: static files for an address.
        visitor_uploads: uploads of a visitor.
        address_uploads: uploads of an address.
        visitor_bytes: bytes of a visitor's uploads; small files count as `LEAST_FILE_BYTES`.
        address_bytes: the same of an address, which alone cannot fill the room for uploads (`RoomLimits`):
            in the 15 minutes that an upload may take to arrive and stay, 750 MB.
        open_per_address: requests that are being answered, streams included.
        open_in_all: the same of everybody.
        visitor_pending: what a visitor has asked that waits or is worked on.
        address_pending: the same of an address.
        visitor_sessions: sessions that a visitor begins; a page has one.
        address_sessions: the same of an address.
        bodies: bytes and seconds of a body.
    """

    visitor: Rate = Rate(300, 200)
    address: Rate = Rate(1_800, 900)
    static: Rate = Rate(3_000, 1_500)
    visitor_uploads: Rate = Rate(20, 20)
    address_uploads: Rate = Rate(60, 60)
    visitor_bytes: Rate = Rate(20_000_000, 100_000_000)
    address_bytes: Rate = Rate(30_000_000, 300_000_000)
    open_per_address: int = 100
    open_in_all: int = 2_000
    visitor_pending: int = 30
    address_pending: int = 60
    visitor_sessions: Rate = Rate(2, 60)
    address_sessions: Rate = Rate(10, 200)
    bodies: BodyLimits = field(default_factory=BodyLimits)


class PublicGate:
    """An ASGI application in front of gradio's: refuses floods, large bodies and other visitors' sessions."""

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
        """Put it in front of an application.

        Args:
            app: gradio's application.
            limits: of the public demo.
            gate_limits: of this gate.
            room: for gradio's folder of uploads; None leaves it without a bound.
            pending: names the session of each event that waits or is worked on.
            clock: seconds.
        """
        self._app, self._limits = app, gate_limits or GateLimits()
        self._rates = _GateRates(self._limits, clock)
        self._slots = _Slots(self._limits.open_per_address, self._limits.open_in_all)
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
            with self._slots.take(network):
                await self._answer(scope, receive, send, network)
        except Refusal as refusal:
            await refusal.send(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, network: str) -> None:
        headers = Headers(scope=scope)
        sender = Sender(_party_of(headers), network)
        if _OPENS_COPY.search(route_path(scope)) or b"deep_link" in scope.get("query_string", b""):
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
        size = length + limits.upload_files * LEAST_FILE_BYTES
        async with self._room.reserve(size) if self._room else nullcontext():
            self._rates.check_bytes(scope, network, size)
            await upload.pass_to(self._app, scope, send)

    async def _answer_call(
        self, scope: Scope, receive: Receive, send: Send, *, headers: Headers, sender: Sender
    ) -> None:
        if is_multipart(headers) and not route_path(scope).startswith("/login"):
            raise Refusal(415, "This address takes no files. Upload them at /gradio_api/upload.")
        async with self._bodies.read(headers, receive) as body:
            if body is None:
                return
            self._claim(list(names_in_body(body)), sender)
            if starts_event(scope):
                self._check_pending(sender)
            send_and_assign = self._sessions.assign_event(scope, sender, send)
            await self._app(scope, _replay(body, receive), send_and_assign)

    def _claim(self, names: Sequence[object], sender: Sender, *, is_session: bool = True) -> None:
        """Let names belong to a sender; a Refusal for one of another party, and for too many new sessions."""
        if is_session and any(isinstance(name, str) and self._sessions.owner(name) is None for name in names):
            visitor = sender.network if sender.party == NO_TOKEN else sender.party
            self._rates.check_session(visitor, sender.network)
        self._sessions.check(names, sender)

    def _check_pending(self, sender: Sender) -> None:
        """Raise a Refusal for a visitor, or an address, that has asked too much that is not done."""
        owners = [owner for name in self._pending() if (owner := self._sessions.owner(name))]
        near = sum(owner.network == sender.network for owner in owners)
        own = sum(owner.party == sender.party != NO_TOKEN for owner in owners)
        if own >= self._limits.visitor_pending or near >= self._limits.address_pending:
            raise Refusal(429, "Much that you asked is still being worked on. Try again in 10 seconds.", 10)


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
        """Raise a Refusal if an address or a visitor asks too often."""
        if route_path(scope).startswith(STATIC):
            _refuse_if_early(self._static.check(network), "requests")
            return
        visitor = _visitor_of(scope, network)
        rates = [(self._calls, "requests")]
        if is_upload_route(scope):
            rates.append((self._uploads, "uploads"))
        for (addresses, visitors), what in rates:
            _refuse_if_early(addresses.check(network), what)
            _refuse_if_early(visitors.check(visitor), what)

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
    """The requests that are being answered."""

    def __init__(self, per_address: int, in_all: int) -> None:
        self._per_address, self._in_all = per_address, in_all
        self._open: Counter[str] = Counter()

    @contextmanager
    def take(self, network: str) -> Iterator[None]:
        """Count a request as open until the block ends.

        Raises:
            Refusal: 429 if its address has too many, 503 if all have.
        """
        if self._open.total() >= self._in_all:
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


def _refuse_if_early(wait: float, what: str) -> None:
    if wait:
        seconds = ceil(wait)
        when = "a second" if seconds == 1 else f"{seconds} seconds"
        raise Refusal(429, f"Too many {what} in a short time. Try again in {when}.", seconds)


def _visitor_of(scope: Scope, network: str) -> str:
    """Whose limits count: a visitor's, or those of all who send no token from one address."""
    return Visitor.from_headers(Headers(scope=scope)).owner or f"no token, {network}"


def _party_of(headers: Headers) -> str:
    """Whose sessions a request may use.

    Gradio's MCP server calls the app through one client of its own, which sends the visitor's token with some
    requests and without it with others. Its session is therefore one of a party of its own. Whoever claims to
    be it gains nothing: the name of that session is random and leaves this process in no answer.
    """
    if headers.get("x-gradio-user") == _MCP:
        return _MCP
    return Visitor.from_headers(headers).owner or NO_TOKEN


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which was read already, and then goes on."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
