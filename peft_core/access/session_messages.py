"""The pending messages of each gradio session, as a replacement for gradio's own table.

Gradio 6.31 keeps the messages of 2,000 sessions and drops the oldest session even if it is in use, such as
that of a page that stays open while programs make 2,000 calls, each of which is a session. An event of a
dropped session then raises in the loop that starts all events and ends it: no request is answered until the
app is restarted.
"""

from asyncio import Queue
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping, ValuesView
from typing import Any

MAX_SESSIONS = 5_000


class SessionMessages(MutableMapping[str, Queue[Any]]):
    """Message queues by session. The least recently used is dropped; reading a dropped one raises no error.

    The stream of an open page uses its queue at least every ten seconds.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._queues: OrderedDict[str, Queue[Any]] = OrderedDict()

    def __setitem__(self, session: str, messages: Queue[Any]) -> None:
        self._queues[session] = messages
        self._queues.move_to_end(session)
        while len(self._queues) > self._max_sessions:
            self._queues.popitem(last=False)

    def __getitem__(self, session: str) -> Queue[Any]:
        """Return a session's queue, or for a dropped session a new queue that nobody reads."""
        if session not in self._queues:
            return Queue()
        self._queues.move_to_end(session)
        return self._queues[session]

    def __delitem__(self, session: str) -> None:
        """Drop a session if it exists: that of a closing page may have been dropped already."""
        self._queues.pop(session, None)

    def __contains__(self, session: object) -> bool:
        return session in self._queues

    def __iter__(self) -> Iterator[str]:
        return iter(self._queues)

    def __len__(self) -> int:
        return len(self._queues)

    def get(self, session: str, default: Any = None) -> Any:
        """Return a session's queue, or the default for a dropped session."""
        return self[session] if session in self._queues else default

    def values(self) -> ValuesView[Queue[Any]]:
        """Return all queues, without marking them as used."""
        return self._queues.values()
