"""Client of a public demo: HTTP/1.1 over asyncio streams, and gradio's protocol on top.

Hundreds of visitors share one process and the cores of the server under test, so each request must be cheap:
it takes 0.1 ms of processor time, where httpx takes 1.5 ms.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_core.access.visitors import LINK_HEADER, TOKEN_HEADER

LONGEST_ANSWER = 600.0  # seconds; 200 simultaneous uploads take over 180
BUSY = (429, 503)  # statuses that ask to try again later
_BOUNDARY = "----a-file-of-a-visitor"
_API = "/gradio_api"


@dataclass(frozen=True)
class Answer:
    """The status and the body of one response; `sent` is the monotonic time of its request."""

    status: int
    body: bytes
    sent: float

    @property
    def is_busy(self) -> bool:
        """Whether the app refused the request only for now, because it is busy."""
        return self.status in BUSY and b"Queue is stopped" not in self.body

    def error_detail(self) -> str:
        """Return the message of an error: `detail` of JSON, or else the text; may be empty."""
        text = self.body.decode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            parsed = json.loads(text)
            text = str(parsed.get("detail") or "") if isinstance(parsed, dict) else text
        return text


@dataclass(frozen=True)
class Reply:
    """The end of a function call: `data`, an error message, or only an HTTP status if it was not accepted."""

    answer: Answer
    data: list[Any] | None = None
    error: str = ""

    @property
    def is_served(self) -> bool:
        return self.data is not None

    @property
    def is_busy(self) -> bool:
        return self.answer.is_busy

    @property
    def text(self) -> str:
        """The status and the error message."""
        return f"{self.answer.status} {self.error or self.answer.error_detail()}"[:300]


@dataclass(frozen=True)
class Function:
    """A function of the page: its number, its inputs by HTML id, and their default values."""

    number: int
    name: str
    inputs: tuple[str, ...]
    input_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    outputs: tuple[str, ...]
    targets: tuple[tuple[int | None, str], ...]
    defaults: tuple[Any, ...]

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the default values, with other values for the inputs of these HTML ids."""
        return [values.get(name, default) for name, default in zip(self.inputs, self.defaults, strict=True)]

    def opened(self, values: Mapping[str, Any]) -> list[Any]:
        """Return `arguments` with the triggering component switched on, as an opened card does."""
        switch = self.input_ids.index(self.targets[0][0])
        arguments = self.arguments(values)
        return [*arguments[:switch], True, *arguments[switch + 1 :]]


class PageFunctions:
    """The functions of a page that run on the server, from `/config`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        components = {each["id"]: each for each in config["components"]}
        ids = {number: each["props"].get("elem_id") or "" for number, each in components.items()}
        self._ids = {name: number for number, name in ids.items() if name}
        self.all = [
            Function(
                number=each["id"],
                name=each["api_name"],
                inputs=tuple(ids.get(number, "") for number in each["inputs"]),
                input_ids=tuple(each["inputs"]),
                output_ids=tuple(each["outputs"]),
                outputs=tuple(ids.get(number, "") for number in each["outputs"]),
                targets=tuple((number, event) for number, event in each["targets"]),
                defaults=tuple(_default_of(components[number]) for number in each["inputs"]),
            )
            for each in config["dependencies"]
            if each["backend_fn"]
        ]

    def endpoint(self, name: str) -> Function:
        """Return the function of a named endpoint."""
        return next(each for each in self.all if each.name == name)

    def on_element(self, event: str, elem_id: str) -> Function:
        """Return the function that an event of a component triggers, such as the click of a button."""
        return self.triggered_by(event, self._ids[elem_id])

    def triggered_by(self, event: str, number: int | None = None) -> Function:
        """Return the first function that an event triggers, of one component or of any."""
        return next(
            each for each in self.all for source, name in each.targets if name == event
            if number in (None, source)
        )  # fmt: skip

    def updating(self, elem_id: str) -> Function:
        """Return the function with the most inputs among those that update a component."""
        return max((each for each in self.all if elem_id in each.outputs), key=lambda each: len(each.inputs))

    def with_input(self, elem_id: str) -> list[Function]:
        """Return the functions that read a component."""
        return [each for each in self.all if elem_id in each.inputs]


class DemoClient:
    """A visitor with a token, an address and a session, over a few connections."""

    def __init__(
        self,
        port: int,
        token: str,
        address: str,
        session: str,
        check_answer: Callable[[Answer, str | None], None] = lambda answer, link: None,
    ) -> None:
        """`check_answer` is called with each answer and the share link of its request."""
        self.port, self.token, self.session = port, token, session
        self._headers = {"Host": f"127.0.0.1:{port}", "X-Forwarded-For": address}
        self._check_answer = check_answer
        self._idle: list[_Connection] = []
        self._stream = asyncio.Lock()  # two streams of a session would consume each other's messages

    async def get(self, path: str, *, link: str | None = None, seconds: float | None = None) -> Answer:
        return await self.send("GET", path, link=link, seconds=seconds)

    async def post(self, path: str, values: Any, *, link: str | None = None) -> Answer:
        return await self.send("POST", path, json.dumps(values).encode(), link=link)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        link: str | None = None,
        content_type: str = "application/json",
        token: str | None = None,
        seconds: float | None = None,
        is_whole: Callable[[bytes], bool] = lambda body: False,
    ) -> Answer:
        """Send one request and return the answer, as far as it has arrived after `seconds`.

        The status is 0 if nothing has arrived. A stream is closed once its body `is_whole`.
        """
        headers = {**self._headers, TOKEN_HEADER: token or self.token, "Content-Type": content_type}
        if link:
            headers[LINK_HEADER] = link
        head = _head(method, path, {**headers, "Content-Length": str(len(body))})
        start = time.monotonic()
        connection = self._idle.pop() if self._idle else _Connection(self.port)
        try:
            async with asyncio.timeout(seconds or LONGEST_ANSWER):
                await connection.exchange(head + body, is_whole)
            self._idle.append(connection)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            connection.close()
        answer = Answer(connection.status, bytes(connection.body), start)
        self._check_answer(answer, link)
        return answer

    async def call(self, name: str, *data: Any, link: str | None = None) -> Reply:
        """Call a named endpoint as a program does."""
        joined = await self.post(f"{_API}/call/{name}", {"data": list(data)}, link=link)
        if joined.status != 200:
            return Reply(joined)
        event = json.loads(joined.body)["event_id"]
        return _reply_of_call(await self.get(f"{_API}/call/{name}/{event}", link=link))

    async def press(self, function: Function, data: Sequence[Any], *, link: str | None = None) -> Reply:
        """Run a function of the page in the page's session and wait for its end."""
        values = {"data": list(data), "fn_index": function.number, "session_hash": self.session}
        async with self._stream:
            joined = await self.post(f"{_API}/queue/join", values, link=link)
            if joined.status != 200:
                return Reply(joined)
            event = json.loads(joined.body)["event_id"]
            path = f"{_API}/queue/data?session_hash={self.session}"

            def has_ended(body: bytes) -> bool:
                return _end_of(event, body) is not None

            answer = await self.send("GET", path, link=link, is_whole=has_ended)
            return _reply_of_queue(answer, event)

    async def run(self, function: Function, data: Sequence[Any]) -> Reply:
        """Run a function that does not queue."""
        values = {"data": list(data), "fn_index": function.number, "session_hash": self.session}
        answer = await self.post(f"{_API}/run/predict", values)
        if answer.status != 200:
            return Reply(answer)
        return Reply(answer, json.loads(answer.body)["data"])

    async def upload(self, name: str, content: bytes) -> Answer:
        """Upload a file; the answer is a list with its path in gradio's cache."""
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
        return await self.send(
            "POST", f"{_API}/upload", body, content_type=f"multipart/form-data; boundary={_BOUNDARY}"
        )

    @contextlib.asynccontextmanager
    async def heartbeat(self) -> AsyncIterator[None]:
        """Keep the session's stream open, as a page does, until the block ends."""
        connection = _Connection(self.port)
        head = _head("GET", f"{_API}/heartbeat/{self.session}", {**self._headers, TOKEN_HEADER: self.token})
        heartbeat_task = asyncio.create_task(connection.exchange(head))
        try:
            yield
        finally:
            heartbeat_task.cancel()
            await asyncio.gather(heartbeat_task, return_exceptions=True)
            connection.close()

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class _Connection:
    """A connection that opens on demand, and again after the app has closed it.

    `status` and `body` belong to the latest answer, as far as it has arrived.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.status, self.body = 0, bytearray()
        self._is_whole: Callable[[bytes], bool] = lambda body: False

    async def exchange(self, request: bytes, is_whole: Callable[[bytes], bool] = lambda body: False) -> None:
        """Send one request and read its answer; a stream is read until its body `is_whole`."""
        self.status, self.body = 0, bytearray()
        self._is_whole = is_whole
        if self._streams is not None:
            with contextlib.suppress(ConnectionError):
                await self._send_and_read(request, *self._streams)
                return
            self.close()  # the app has closed the idle connection
        self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        await self._send_and_read(request, *self._streams)

    async def _send_and_read(
        self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(request)
        line, *fields = (await _read_head(reader)).decode("latin-1").split("\r\n")
        headers = {name.lower(): content for name, _, content in (each.partition(": ") for each in fields)}
        self.status = int(line.split(" ")[1])
        await self._read_body(reader, headers)
        if headers.get("connection") == "close":
            self.close()

    async def _read_body(self, reader: asyncio.StreamReader, headers: Mapping[str, str]) -> None:
        if headers.get("transfer-encoding") != "chunked":
            self.body += await reader.readexactly(int(headers.get("content-length", 0)))
            return
        while size := int(await reader.readuntil(b"\r\n"), 16):
            self.body += await reader.readexactly(size)
            await reader.readexactly(2)
            if self._is_whole(self.body):
                self.close()
                return
        await reader.readexactly(2)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """Read the head of an answer. Raises ConnectionError if the connection ended before it."""
    try:
        return (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        raise ConnectionResetError("the app closed the connection") from error


def _default_of(component: Mapping[str, Any]) -> Any:
    """Return the initial value of a component; that of a textbox is never None, as in gradio's page."""
    default = component["props"].get("value")
    return "" if default is None and component["type"] == "textbox" else default


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {content}" for name, content in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _reply_of_call(answer: Answer) -> Reply:
    """Return the end of a stream of `event:` and `data:` lines."""
    event, _, data = (
        answer.body.decode("utf-8", "replace").strip().rpartition("\n\n")[2].partition("\ndata: ")
    )
    if answer.status != 200 or not data:
        return Reply(answer, error="" if answer.status != 200 else "the stream ended early")
    content = json.loads(data)
    if event == "event: complete":
        return Reply(answer, content)
    return Reply(answer, error=_error_of(content))


def _reply_of_queue(answer: Answer, event: str) -> Reply:
    """Return the end of an event from the messages of a session."""
    if answer.status != 200:
        return Reply(answer)
    end = _end_of(event, answer.body)
    if end is None:
        return Reply(answer, error="the stream ended early")
    output = end["output"]
    return Reply(answer, output.get("data", [])) if end["success"] else Reply(answer, error=_error_of(output))


def _end_of(event: str, body: bytes) -> Any | None:
    """Return the message that ends an event; None if it has not arrived."""
    for line in reversed(bytes(body).split(b"\n\n")[:-1]):  # complete messages
        if b'"process_completed"' in line and event.encode() in line:
            return json.loads(line.removeprefix(b"data: "))
    return None


def _error_of(output: Any) -> str:
    return (
        str(output.get("error") or "an error without a sentence") if isinstance(output, dict) else str(output)
    )
