"""The messages that wait for each session of gradio's, in place of gradio's own table.

Gradio 6.31 keeps those of 2,000 sessions and drops the oldest, though it may be in use: a page that stays
open while programs make 2,000 calls, each of which is a session. An event of a dropped session then raises in
the loop that starts all events, which ends it: nobody is answered any more until the app starts again.
"""

from asyncio import Queue
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping, ValuesView
from typing import Any

MOST_SESSIONS = 5_000


class SessionMessages(MutableMapping[str, Queue[Any]]):
    """Queues by session: the one that was used the longest time ago goes; none is missed.

    An open page's stream uses its own at least every ten seconds.
    """

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._queues: OrderedDict[str, Queue[Any]] = OrderedDict()

    def __setitem__(self, session: str, messages: Queue[Any]) -> None:
        self._queues[session] = messages
        self._queues.move_to_end(session)
        while len(self._queues) > self._most:
            self._queues.popitem(last=False)

    def __getitem__(self, session: str) -> Queue[Any]:
        """A session's queue, or for one that is gone another that nobody reads."""
        if session not in self._queues:
            return Queue()
        self._queues.move_to_end(session)
        return self._queues[session]

    def __delitem__(self, session: str) -> None:
        """Let a session go, if it is there: that of a page which closes may be gone already."""
        self._queues.pop(session, None)

    def __contains__(self, session: object) -> bool:
        return session in self._queues

    def __iter__(self) -> Iterator[str]:
        return iter(self._queues)

    def __len__(self) -> int:
        return len(self._queues)

    def get(self, session: str, default: Any = None) -> Any:
        """A session's queue, or the default for one that is gone."""
        return self[session] if session in self._queues else default

    def values(self) -> ValuesView[Queue[Any]]:
        """All queues; looking through them is no use of them."""
        return self._queues.values()
