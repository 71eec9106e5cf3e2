"""Limits for the size and duration of request bodies, enforced while they arrive.

The body of a call is read before the application sees it. An upload is passed on in chunks, which gradio
writes to files. Gradio's parser deletes these files if it cannot parse the body, but not if the client
disconnects. An upload that ends early is therefore terminated here by a chunk that cannot be parsed.
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
    """Limits for request bodies.

    Attributes:
        call_bytes: Maximum size of a call's body.
        call_seconds: Maximum time until a call's body has arrived.
        large_bytes: Size above which a call's body counts as large.
        memory_bytes: While all bodies in memory exceed this, large ones are refused.
        upload_files: Maximum number of files of one upload.
        upload_seconds: Maximum time until an upload has arrived.
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
        """Yield the whole body, or None if the client disconnected.

        The body counts as in memory until the block ends.

        Raises:
            Refusal: 413 if it is too large, 408 if it takes too long, 503 if memory is full.
        """
        check_declared_length(headers, self._limits.call_bytes)
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.call_seconds):
                    is_complete = await self._collect(receive, body)
            except TimeoutError:
                raise _too_slow(self._limits.call_seconds) from None
            yield bytes(body) if is_complete else None
        finally:
            self._in_memory -= len(body)

    async def _collect(self, receive: Receive, body: bytearray) -> bool:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return False
            chunk = message.get("body", b"")
            body += chunk
            self._in_memory += len(chunk)
            if len(body) > self._limits.call_bytes:
                raise _too_large(self._limits.call_bytes)
            if len(body) > self._limits.large_bytes and self._in_memory > self._limits.memory_bytes:
                raise Refusal(503, "This demo is busy with large requests. Try again in 10 seconds.", 10)
            if not message.get("more_body"):
                return True


class UploadBody:
    """The body of an upload, passed on to the application through `receive`."""

    def __init__(
        self, headers: Mapping[str, str], receive: Receive, *, max_bytes: int, limits: BodyLimits
    ) -> None:
        """Prepare to pass on an upload of at most `max_bytes`, the number reserved for it (`length_of`)."""
        self._receive, self._max_bytes, self._limits = receive, max_bytes, limits
        self._deadline = time.monotonic() + limits.upload_seconds
        self._delimiter = b"--" + _boundary(headers)
        self._bytes = self._delimiters = 0
        self._tail = b""
        self._ended = False
        self._refusal: Refusal | None = None

    async def pass_to(self, app: App, scope: Scope, send: Send) -> None:
        """Let an application answer the upload.

        Raises:
            Refusal: The upload was cut off; no answer was sent.
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
        """Return the next chunk, or one that cannot be parsed if the upload is cut off."""
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
        unparsable = (
            b"\r\n" * 3 + self._delimiter + b"\r\n\0: \0\r\n"
        )  # in headers, between parts and in data
        return {"type": "http.request", "body": unparsable, "more_body": False}

    def _count(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        window = self._tail + chunk
        self._delimiters += window.count(self._delimiter)
        self._tail = window[-len(self._delimiter) + 1 :]
        if self._delimiters > self._limits.upload_files + 1:  # the last delimiter closes the body
            raise Refusal(413, f"Upload at most {self._limits.upload_files} files at once.")


def is_multipart(headers: Mapping[str, str]) -> bool:
    """Return whether a route may look for files in the body; gradio checks only the start of its type."""
    return headers.get("content-type", "").strip().lower().startswith("multipart/")


def check_declared_length(headers: Mapping[str, str], max_bytes: int) -> None:
    """Raise a Refusal if the Content-Length header exceeds the limit."""
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


def length_of(headers: Mapping[str, str], max_bytes: int) -> int:
    """Return the bytes to reserve for a body: its declared length, or `max_bytes` if it declares none.

    Raises:
        Refusal: 413 if the declared length exceeds `max_bytes`.
    """
    check_declared_length(headers, max_bytes)
    length = headers.get("content-length", "")
    is_declared = length.isdecimal() and "transfer-encoding" not in headers  # which takes precedence
    return int(length[:20]) if is_declared else max_bytes


def _boundary(headers: Mapping[str, str]) -> bytes:
    """Return the multipart boundary of a body.

    Raises:
        Refusal: 400 if the boundary is missing or empty.
    """
    content_type, options = parse_options_header(headers.get("content-type", ""))
    if content_type != MULTIPART or not options.get(b"boundary"):
        raise Refusal(400, "Send files as multipart/form-data with a boundary.")
    return options[b"boundary"]


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, f"This request is larger than the limit of {max_bytes / 1e6:,.1f} MB. Send less.")


def _too_slow(seconds: float) -> Refusal:
    return Refusal(
        408, f"This request did not arrive within {seconds:,.0f} seconds. Send it again, or send less."
    )
