"""Ownership of gradio sessions: the visitor to whom each session, upload and event belongs.

Gradio stores the state of a page, its messages and its uploads under names that clients choose
(`session_hash`, `upload_id`) or receive (`event_id`), and answers any client that knows a name. Here a name
belongs to the party that used it first: a visitor, or all programs without a token together. An event belongs
to the party that started it. If the caller sent no `session_hash`, gradio uses the event's id as one, so all
names share one table.

Names are extracted wherever gradio reads one, and from JSON bodies of other routes too: a name that a route
ignores does no harm, and no name that it reads is missed. Gradio, too, rejects a body that `json.loads`
rejects.
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
_EVENT_RESULT = re.compile(r"(?:/gradio_api)?/call/(?:[^/]+/){1,2}?([^/]+)/?")  # fetched by GET
_STARTS_EVENT = re.compile(r"(?:/gradio_api)?/(?:queue/join|call/.+)")  # by POST


class Sender(NamedTuple):
    """The sender of a request: the party whose names it may use, and its network."""

    party: str
    network: str


class Sessions:
    """The owners of names. The least recently used name is dropped to make room for a new one."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._max_names = max_names
        self._owners: OrderedDict[str, Sender] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def owner(self, name: str) -> Sender | None:
        """Return the owner of a name with the network of its last use; None for an unused name."""
        return self._owners.get(name)

    def check(self, names: Iterable[object], sender: Sender) -> None:
        """Assign unused names to the sender's party, and check that it owns the others.

        Raises:
            Refusal: 400 for a malformed name, 404 for a name of another party.
        """
        checked = [_check_name(name) for name in names]
        if any(name in self._owners and self._owners[name].party != sender.party for name in checked):
            raise Refusal(404, "This session was not found. Reload the page.")
        for name in checked:
            self.assign(name, sender)

    def assign(self, name: str, sender: Sender) -> None:
        """Assign a name to the sender's party."""
        self._owners[name] = sender
        self._owners.move_to_end(name)
        if len(self._owners) > self._max_names:
            self._owners.popitem(last=False)

    def assign_event(self, scope: Scope, sender: Sender, send: Send) -> Send:
        """Wrap `send` to assign the event in gradio's answer to the sender before the answer is sent."""
        if not starts_event(scope):
            return send

        async def send_assigned(message: Message) -> None:
            event = _fields(bytes(message.get("body", b""))).get("event_id")
            if isinstance(event, str):
                self.assign(event, sender)
            await send(message)

        return send_assigned


def starts_event(scope: Scope) -> bool:
    """Return whether a request adds an event to gradio's queue."""
    return scope["method"] == "POST" and _STARTS_EVENT.fullmatch(route_path(scope)) is not None


def names_in_url(scope: Scope) -> Iterator[object]:
    """Yield the sessions, uploads and events in the path and query of a request."""
    path = route_path(scope)
    is_get = scope.get("method") == "GET"
    match = _IN_PATH.fullmatch(path) or (_EVENT_RESULT.fullmatch(path) if is_get else None)
    if match:
        yield match[1]
    for key, name in parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True):
        if key in ("session_hash", "upload_id"):
            yield name


def names_in_body(body: bytes) -> Iterator[object]:
    """Yield the session and event in a JSON object, except null."""
    fields = _fields(body)
    yield from (fields[key] for key in ("session_hash", "event_id") if fields.get(key) is not None)


def _check_name(name: object) -> str:
    if not isinstance(name, str):
        raise Refusal(400, f"session_hash must be text, not {type(name).__name__}.")
    if len(name) > MAX_LENGTH:
        raise Refusal(400, f"session_hash has {len(name):,} characters; use at most {MAX_LENGTH}, at random.")
    return name


def _fields(body: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
