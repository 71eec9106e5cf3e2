"""Bodies of requests, bounded in bytes and in seconds as they arrive.

A call's body is read before the application sees it. An upload is passed on in pieces, and gradio writes it
to files. Gradio's parser deletes them if it cannot parse the body, but not if the client goes away, so an
upload that ends early is ended here by a piece that it cannot parse.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from peft_core.access.asgi import App, Message, Receive, Scope, Send
from peft_core.access.refusals import Refusal

MULTIPART = b"multipart/form-data"


@dataclass(frozen=True)
class BodyLimits:
    """What a body may have.

    Attributes:
        call_bytes: of a call.
        call_seconds: until a call's body has arrived.
        large_bytes: from which on a call counts as large.
        memory_bytes: of all bodies that are in memory; while they have more, no large one is taken.
        upload_files: of one upload.
        upload_seconds: until an upload has arrived.
    """

    call_bytes: int = 100_000
    call_seconds: float = 60.0
    large_bytes: int = 20_000
    memory_bytes: int = 100_000_000
    upload_files: int = 20
    upload_seconds: float = 300.0


class CallBodies:
    """Reads the bodies of calls."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits, self._in_memory = limits, 0

    @asynccontextmanager
    async def read(self, headers: Mapping[str, str], receive: Receive) -> AsyncIterator[bytes | None]:
        """A whole body, or None if the client went away; it counts as in memory until the block ends.

        Raises:
            Refusal: 413 if it is too large, 408 if it takes too long, 503 if memory is full.
        """
        check_declared_length(headers, self._limits.call_bytes)
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.call_seconds):
                    whole = await self._collect(receive, body)
            except TimeoutError:
                raise _too_slow(self._limits.call_seconds) from None
            yield bytes(body) if whole else None
        finally:
            self._in_memory -= len(body)

    async def _collect(self, receive: Receive, body: bytearray) -> bool:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return False
            piece = message.get("body", b"")
            body += piece
            self._in_memory += len(piece)
            if len(body) > self._limits.call_bytes:
                raise _too_large(self._limits.call_bytes)
            if len(body) > self._limits.large_bytes and self._in_memory > self._limits.memory_bytes:
                raise Refusal(503, "This demo is busy with large requests. Try again in 10 seconds.", 10)
            if not message.get("more_body"):
                return True


class UploadBody:
    """The body of an upload on its way to the application, which takes it for a `receive`."""

    def __init__(
        self, headers: Mapping[str, str], receive: Receive, *, max_bytes: int, limits: BodyLimits
    ) -> None:
        """`max_bytes` are those that were reserved: `length_of`."""
        self._receive, self._max_bytes, self._limits = receive, max_bytes, limits
        self._deadline = time.monotonic() + limits.upload_seconds
        self._delimiter = b"--" + _boundary(headers)
        self._bytes = self._delimiters = 0
        self._tail = b""
        self._ended = False
        self._refusal: Refusal | None = None

    async def pass_to(self, app: App, scope: Scope, send: Send) -> None:
        """Have an application answer it.

        Raises:
            Refusal: in place of the answer, if the upload was cut off.
        """

        async def send_unless_refused(message: Message) -> None:
            if self._refusal is None:
                await send(message)

        try:
            await app(scope, self.receive, send_unless_refused)
        except Exception:
            if self._refusal is None:
                raise
        if self._refusal is not None:
            raise self._refusal

    async def receive(self) -> Message:
        """The next piece, or one that cannot be parsed where the upload ends early."""
        if self._ended:
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
            if message["type"] == "http.request":
                self._count(message.get("body", b""))
                self._ended = not message.get("more_body")
                return message
        except TimeoutError:
            self._refusal = _too_slow(self._limits.upload_seconds)
        except Refusal as refusal:
            self._refusal = refusal
        self._ended = True
        unparsable = b"\r\n" * 3 + self._delimiter + b"\r\n\0: \0\r\n"  # in headers, between them and in data
        return {"type": "http.request", "body": unparsable, "more_body": False}

    def _count(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        window = self._tail + piece
        self._delimiters += window.count(self._delimiter)
        self._tail = window[-len(self._delimiter) + 1 :]
        if self._delimiters > self._limits.upload_files + 1:  # one closes the body
            raise Refusal(413, f"Upload at most {self._limits.upload_files} files at once.")


def is_multipart(headers: Mapping[str, str]) -> bool:
    """Whether a route may look for files in a body: gradio's read only the beginning of its type."""
    return headers.get("content-type", "").strip().lower().startswith("multipart/")


def check_declared_length(headers: Mapping[str, str], max_bytes: int) -> None:
    """Raise a Refusal for a body that is too large by its own header."""
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


def length_of(headers: Mapping[str, str], max_bytes: int) -> int:
    """The bytes that a body may have: those that it declares, else the most that is taken.

    Raises:
        Refusal: 413 for one that is too large by its own header.
    """
    check_declared_length(headers, max_bytes)
    length = headers.get("content-length", "")
    is_declared = length.isdecimal() and "transfer-encoding" not in headers  # which counts if both are there
    return int(length[:20]) if is_declared else max_bytes


def _boundary(headers: Mapping[str, str]) -> bytes:
    """What separates the files of a body.

    Raises:
        Refusal: 400 if it has no boundary, or an empty one.
    """
    content_type, options = parse_options_header(headers.get("content-type", ""))
    if content_type != MULTIPART or not options.get(b"boundary"):
        raise Refusal(400, "Send files as multipart/form-data with a boundary.")
    return options[b"boundary"]


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(
        413, f"This request has over {max_bytes / 1e6:,.1f} MB, the most that is taken. Send less."
    )


def _too_slow(seconds: float) -> Refusal:
    return Refusal(408, f"This request did not arrive within {seconds:,.0f} seconds. Send it again, or less.")
