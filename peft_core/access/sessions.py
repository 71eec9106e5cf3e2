"""Which visitor a session of gradio's belongs to.

Gradio keeps the state of a page, its messages and its uploads under names that clients choose
(`session_hash`, `upload_id`) or are given (`event_id`), and answers whoever knows one. Here a name belongs to
the party that used it first: a visitor, or all programs that sent no token together. An event belongs to who
started it; gradio answers its id as a `session_hash` too, where the caller gave none, so all names share one
table.

Names are looked for wherever gradio reads one, and in JSON bodies of other routes too: what a route ignores
does no harm, and what it reads is never missed. A body that `json.loads` refuses, gradio refuses likewise.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import parse_qsl

from peft_core.access.asgi import Message, Scope, Send
from peft_core.access.refusals import Refusal, route_path

MAX_NAMES = 20_000
MAX_LENGTH = 100
_IN_PATH = re.compile(r"(?:/gradio_api)?/(?:heartbeat|stream)/([^/]+)(?:/.*)?")
_RESULT = re.compile(r"(?:/gradio_api)?/call/(?:[^/]+/){1,2}?([^/]+)/?")  # fetched by GET
_STARTS_EVENT = re.compile(r"(?:/gradio_api)?/(?:queue/join|call/.+)")  # by POST


class Sender(NamedTuple):
    """Who sent a request: the party whose names it may use, and the network that it came from."""

    party: str
    network: str


class Sessions:
    """The owners of names; the name that was used the longest time ago makes room for a new one."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._owners: OrderedDict[str, Sender] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def owner(self, name: str) -> Sender | None:
        """Whose a name is, and from where they used it last; None if nobody has used it."""
        return self._owners.get(name)

    def check(self, names: Iterable[object], sender: Sender) -> None:
        """Claim names that nobody has used for the sender's party.

        Raises:
            Refusal: 400 for what cannot be a name, 404 for a name of another party.
        """
        checked = [_name(name) for name in names]
        if any(name in self._owners and self._owners[name].party != sender.party for name in checked):
            raise Refusal(404, "This session was not found. Reload the page.")
        for name in checked:
            self.assign(name, sender)

    def assign(self, name: str, sender: Sender) -> None:
        """Let a name belong to the sender's party."""
        self._owners[name] = sender
        self._owners.move_to_end(name)
        if len(self._owners) > self._max_names:
            self._owners.popitem(last=False)

    def assign_event(self, scope: Scope, sender: Sender, send: Send) -> Send:
        """Wrap `send`: an event that gradio's answer names belongs to the sender before the answer leaves."""
        if not starts_event(scope):
            return send

        async def send_assigned(message: Message) -> None:
            event = _fields(bytes(message.get("body", b""))).get("event_id")
            if isinstance(event, str):
                self.assign(event, sender)
            await send(message)

        return send_assigned


def starts_event(scope: Scope) -> bool:
    """Whether a request puts work into gradio's queue."""
    return scope["method"] == "POST" and _STARTS_EVENT.fullmatch(route_path(scope)) is not None


def names_in_url(scope: Scope) -> Iterator[object]:
    """The sessions, uploads and events that a request names in its path and query."""
    path = route_path(scope)
    in_path = _IN_PATH.fullmatch(path) or (_RESULT.fullmatch(path) if scope.get("method") == "GET" else None)
    if in_path:
        yield in_path[1]
    for key, value in parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True):
        if key in ("session_hash", "upload_id"):
            yield value


def names_in_body(body: bytes) -> Iterator[object]:
    """The session and event that a JSON object names, null but for."""
    fields = _fields(body)
    yield from (fields[key] for key in ("session_hash", "event_id") if fields.get(key) is not None)


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise Refusal(400, f"session_hash must be text, not {type(value).__name__}.")
    if len(value) > MAX_LENGTH:
        raise Refusal(
            400, f"session_hash has {len(value):,} characters; use at most {MAX_LENGTH}, at random."
        )
    return value


def _fields(body: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
