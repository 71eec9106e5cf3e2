"""Forged requests of a visitor: paths, file payloads, URLs, ids, sessions and tokens of others.

They are sent raw to every route and every function of a running public demo with secrets (`forged_exhibit`).
Rate limits are lifted and direct calls allowed, so that no request is refused for its rate. No answer may
contain a secret or the path of the runs, unless the request contains it; no request may reach the canary
server; no data of another visitor may change; and a visitor's own run is answered before and after.
"""

import contextlib
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse

from batteries.forged_exhibit import API, Exhibit, exhibit
from batteries.forged_requests import TAG, Forged, all_requests
from batteries.result import BatteryResult

NAME = "forged requests of a visitor, over every route and function"
PASSES_WHEN = "0 bytes of a secret out, 0 addresses fetched, nothing of another's changed"
AT_ONCE = 8
STREAM_SECONDS = 1.0  # for which an endless stream is read
QUEUE_SECONDS = 60.0  # time limit of a function
_FILE = re.compile(rb'(/gradio_api/file=[^"\\\s]+)')
_MOST_BYTES = 3_000_000
_ENDED = re.compile(rb'"msg": ?"(process_completed|close_stream|unexpected_error)"|event: (complete|error)')


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        status: 0 if the app closed the connection, or a function did not answer.
        body: for a queued call, of both answers.
        headers: one per line.
        files: contents of the file URLs in the body.
    """

    status: int = 0
    body: bytes = b""
    headers: str = ""
    files: tuple[bytes, ...] = ()

    @property
    def is_page(self) -> bool:
        return "content-type: text/html" in self.headers.lower()


def run(share: float = 1.0, seed: int = 0, *, broken: str = "", only: tuple[str, ...] = ()) -> BatteryResult:
    """Send a share of all requests, or of the families in `only`.

    `broken` is Python that breaks the guards of the app under test.
    """
    start = time.monotonic()
    with exhibit(seed, broken) as place:
        failures = _own_run_is_answered(place, "before")
        before = place.digests()
        requests = [each for each in all_requests(place, share) if not only or each.family in only]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda request: send(place.port, request), requests))
        for request, answer in zip(requests, answers, strict=True):
            failures += [
                f"{request.family} got {problem}: {request}" for problem in _problems(place, request, answer)
            ]
        failures += [f"the server beside the app was asked for {hit}" for hit in place.hits]
        failures += _changes(before, place.digests())
        failures += _own_run_is_answered(place, "after")
    outcomes = Counter(request.family for request in requests)
    outcomes["functions called"] = len(_functions_called(requests))
    outcomes |= Counter(f"answered {answer.status // 100}xx" for answer in answers)
    seconds = time.monotonic() - start
    return BatteryResult(
        NAME, len(requests), tuple(failures), tuple(sorted(outcomes.items())), PASSES_WHEN, seconds
    )


def send(port: int, request: Forged) -> Answer:
    """Send a request; return its answer with that of a queued function and the files that it names."""
    answer = _with_result(port, request, _exchange(port, request, STREAM_SECONDS))
    links = [] if answer.is_page else sorted(set(_FILE.findall(answer.body)))[:3]
    files = [
        _exchange(port, Forged("", "GET", link.decode(), request.headers), STREAM_SECONDS) for link in links
    ]
    return replace(answer, files=tuple(file.body for file in files))


def _with_result(port: int, request: Forged, answer: Answer) -> Answer:
    if not request.is_queued or answer.status != 200:
        return answer
    event = json.loads(answer.body)["event_id"]
    name = f"call/x/{event}"
    if "queue/join" in request.path:
        name = f"queue/data?session_hash={json.loads(request.body)['session_hash']}"
    function_answer = _exchange(port, Forged("", "GET", f"{API}/{name}", request.headers), QUEUE_SECONDS)
    return Answer(
        function_answer.status if _ENDED.search(function_answer.body) else 0,
        answer.body + function_answer.body,
        function_answer.headers,
    )


def _exchange(port: int, request: Forged, seconds: float) -> Answer:
    """Send exactly these bytes; read until the answer, the function or the time ends."""
    deadline = time.monotonic() + (QUEUE_SECONDS if request.method == "POST" else seconds)
    headers = {"Host": f"127.0.0.1:{port}", **request.headers, "Content-Length": str(len(request.body))}
    lines = [
        f"{request.method} {request.path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    message = "\r\n".join([*lines, "Connection: close", "", ""]).encode() + request.body
    with (
        contextlib.suppress(HTTPException, OSError),
        socket.create_connection(("127.0.0.1", port), 20) as link,
    ):
        link.sendall(message)
        response = HTTPResponse(link, method=request.method)
        link.settimeout(QUEUE_SECONDS)
        response.begin()
        head = "".join(f"{name}: {value}\n" for name, value in response.getheaders())
        return Answer(response.status, _read(link, response, deadline), head)
    return Answer()


def _read(link: socket.socket, response: HTTPResponse, deadline: float) -> bytes:
    body = bytearray()
    with contextlib.suppress(HTTPException, OSError):
        while len(body) < _MOST_BYTES and (seconds := deadline - time.monotonic()) > 0:
            link.settimeout(seconds)
            chunk = response.read1(65_536)
            body += chunk
            if not chunk or _ENDED.search(body, max(0, len(body) - len(chunk) - 50)):
                break
    return bytes(body)


def _problems(place: Exhibit, request: Forged, answer: Answer) -> Iterator[str]:
    yield from (
        f"the secret of the {name}"
        for name in place.leaks(answer.headers, (answer.body, *answer.files), request.sent)
    )
    if answer.status == 429:
        yield "turned away for its rate"
    if request.is_queued and answer.status == 0:
        yield "no answer of the function"
    if b"62615533" in answer.body:
        yield "a template filled in"
    if TAG.encode() in answer.body and (answer.is_page or _is_in_html(answer.body)):
        yield "its tag back in a page"


def _is_in_html(body: bytes) -> bool:
    """Whether an HTML output of a function contains the tag unescaped."""
    texts = re.findall(rb'"((?:[^"\\]|\\.)*)"', body)
    return any(text.startswith(b"<") and TAG.encode() in text and text != TAG.encode() for text in texts)


def _functions_called(requests: list[Forged]) -> set[int]:
    return {
        json.loads(request.body)["fn_index"]
        for request in requests
        if request.family == "a function's inputs"
    }


def _changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"changed: {name}" for name in sorted(names)]


def _own_run_is_answered(place: Exhibit, when: str) -> list[str]:
    """Return a problem if the owner of a run gets no answer."""
    body = json.dumps({"data": [place.mallory.run_id]}).encode()
    headers = {**place.mallory.headers, "Content-Type": "application/json"}
    answer = send(place.port, Forged("", "POST", f"{API}/run/status", headers, body))
    if answer.status == 200 and b"FINISHED" in answer.body:
        return []
    return [f"{when} the requests the owner of a run is answered {answer.status}"]
