"""Room for uploads: gradio's folder stays within its limit, and old uploads are removed first."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from peft_core.access.address import CLIENT_ADDRESS
from peft_core.access.gate import GateLimits, PublicGate
from peft_core.access.rates import Rate
from peft_core.access.refusals import Refusal
from peft_core.access.upload_room import MIN_FILE_BYTES, RoomLimits, UploadRoom
from peft_core.access.visitors import TOKEN_HEADER, new_token
from peft_core.service.limits import Limits

LIMITS = RoomLimits(total_bytes=1_000_000, min_free_bytes=2_000_000)
BOUNDARY = "a5b1c8"
TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
BODY = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\n'.encode()


class Disk:
    """A folder of uploads on a disk with so many free bytes, and a clock that a test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.free, self.now = folder, 10_000_000, 1_000_000.0
        self.room = UploadRoom(folder, LIMITS, clock=lambda: self.now, free_bytes=lambda: self.free)
        self._names = (f"{number:064x}" for number in range(1000))

    def keep(self, size: int, *, age: float = 0.0) -> Path:
        """Write an upload as gradio stores it, and return its folder."""
        return self.write(f"{next(self._names)}/a.csv", size, age=age).parent

    def write(self, name: str, size: int, *, age: float = 0.0) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        os.truncate(path, size)
        for touched in (path, path.parent):
            os.utime(touched, (self.now - age, self.now - age))
        return path

    def reserve(self, *sizes: int) -> str | None:
        """Reserve room for simultaneous uploads; return the refusal's message, or None if all fit."""

        async def reserve_all() -> None:
            async with AsyncExitStack() as stack:
                for size in sizes:
                    await stack.enter_async_context(self.room.reserve(size))

        try:
            asyncio.run(reserve_all())
        except Refusal as refusal:
            assert (refusal.status, refusal.retry_after is not None) == (503, True)
            return refusal.message
        return None


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "gradio")


def no_room(when: str) -> str:
    return f"This demo has no room for more uploads. Try again in {when}."


def test_room_counts_stored_and_arriving_uploads(disk: Disk) -> None:
    assert disk.reserve(1_000_000) is None, "before there is a folder"
    disk.keep(600_000)
    assert disk.reserve(200_000, 200_000) is None
    assert disk.reserve(200_000, 200_001) == no_room("10 minutes")
    assert disk.reserve(400_000) is None, "what arrived before was released"


def test_room_admits_simultaneous_uploads_up_to_total(disk: Disk) -> None:
    disk.keep(700_000)
    admitted: list[int] = []

    async def upload() -> None:
        async with disk.room.reserve(100_000):
            admitted.append(1)
            await asyncio.sleep(0.2)

    async def upload_many() -> list[Any]:
        return await asyncio.gather(*(upload() for _ in range(20)), return_exceptions=True)

    refused = [outcome for outcome in asyncio.run(upload_many()) if outcome is not None]
    assert len(admitted) == 3 and len(refused) == 17
    assert all(isinstance(refusal, Refusal) for refusal in refused)


def test_room_removes_only_as_many_old_uploads_as_needed(disk: Disk) -> None:
    oldest, old = disk.keep(400_000, age=1200), disk.keep(300_000, age=700)
    new = disk.keep(300_000, age=500)
    assert disk.reserve(300_000) is None
    assert not oldest.exists() and old.is_dir() and new.is_dir()
    assert disk.reserve(400_000) is None, "it fits now"
    assert old.is_dir()


def test_room_keeps_new_uploads_and_refusal_names_wait(disk: Disk) -> None:
    uploads = [disk.keep(400_000, age=700), disk.keep(500_000, age=330)]
    assert disk.reserve(600_000) == no_room("5 minutes")
    assert all(folder.is_dir() for folder in uploads), "nothing goes in vain"
    disk.now += 271
    assert disk.reserve(600_000) is None
    assert not any(folder.exists() for folder in uploads)


def test_room_counts_upload_used_again_as_new(disk: Disk) -> None:
    folder = disk.keep(900_000, age=700)
    os.utime(folder / "a.csv", (disk.now, disk.now))
    assert disk.reserve(200_000) == no_room("10 minutes")


def test_room_keeps_minimum_free_disk(disk: Disk) -> None:
    disk.free = 2_300_000
    assert disk.reserve(300_000) is None
    assert disk.reserve(300_001) == no_room("10 minutes")
    disk.keep(400_000, age=700)
    assert disk.reserve(300_001) == no_room("a minute"), "the disk did not get emptier"


def test_room_bounds_number_of_small_files(disk: Disk) -> None:
    for _ in range(1_000_000 // MIN_FILE_BYTES):
        disk.keep(0)
    assert disk.reserve(1) == no_room("10 minutes")


def test_room_keeps_downloads_locks_and_links(disk: Disk) -> None:
    downloads = disk.write(f"downloads/{'0' * 32}/{'1' * 32}/adapter.zip", 5_000_000, age=7200)
    lock = disk.write(f"downloads/{'0' * 32}.lock", 0, age=7200)
    link = disk.folder / ("f" * 64)
    link.symlink_to(downloads.parent)
    assert disk.reserve(1_000_000) is None
    disk.keep(900_000)
    assert disk.reserve(900_000) == no_room("10 minutes")
    assert downloads.is_file() and lock.is_file() and link.is_symlink()


def test_room_counts_arriving_file_once_and_removes_abandoned_file(disk: Disk) -> None:
    arriving = disk.write("tmpab12_x", 900_000, age=100)
    assert disk.reserve(900_000) is None and arriving.is_file()
    disk.now += 400
    assert disk.reserve(900_000) == no_room("2 minutes")
    disk.now += 200
    assert disk.reserve(900_000) is None
    assert not arriving.exists()


# In the gate


@pytest.fixture
def send_upload(disk: Disk) -> Iterator[Callable[..., tuple[int, str]]]:
    """Return a function that uploads a body through a gate and returns the status and the text."""

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        size = 0
        while (message := await receive()).get("more_body"):
            size += len(message["body"])
        disk.keep(size + len(message["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"taken"})

    clock = [0.0]
    rates = GateLimits(visitor_bytes=Rate(1_000_000, 1_000_000), address_bytes=Rate(600_000, 2_000_000))
    limits = Limits(max_upload_bytes=10_000)
    gate = PublicGate(gradio, limits, rates, room=disk.room, clock=lambda: clock[0])

    async def upload(content: Any, token: str, address: str) -> tuple[int, str]:
        CLIENT_ADDRESS.set(address)
        transport = httpx.ASGITransport(app=gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo.example") as http:
            headers = {**TYPE, TOKEN_HEADER: token}
            answer = await http.post("/gradio_api/upload", content=content, headers=headers)
            return answer.status_code, answer.text

    def send_upload(
        content: Any = BODY, *, token: str = "a" * 64, address: str = "192.0.2.1", after: float = 0.0
    ) -> tuple[int, str]:
        clock[0] += after
        return asyncio.run(upload(content, token, address))

    yield send_upload


async def _body_chunks(*parts: bytes) -> Any:
    for part in parts:
        yield part


def test_gate_with_full_room_answers_503_with_wait(
    send_upload: Callable[..., tuple[int, str]], disk: Disk
) -> None:
    assert send_upload() == (200, "taken")
    disk.keep(600_000)
    assert send_upload() == (503, no_room("10 minutes"))
    disk.now += 601
    assert send_upload(after=601) == (200, "taken")


def test_gate_reserves_maximum_for_upload_without_length(
    send_upload: Callable[..., tuple[int, str]], disk: Disk
) -> None:
    """The maximum, 20 files of 10 kB and a megabyte around them, does not fit; the actual body would."""
    disk.keep(1_000)
    assert send_upload(_body_chunks(BODY)) == (503, no_room("10 minutes"))
    assert send_upload(BODY, after=600) == (200, "taken")


def test_gate_limits_upload_bytes_per_visitor_and_address(
    send_upload: Callable[..., tuple[int, str]], disk: Disk
) -> None:
    """Each upload counts half a megabyte more than its length, for the files that it may contain."""

    def statuses(count: int, **options: Any) -> list[int]:
        codes = []
        for _ in range(count):
            disk.now += 601
            codes.append(send_upload(**options)[0])
        return codes

    assert statuses(2) == [200, 429]
    assert send_upload() == (429, "Too many uploaded bytes in a short time. Try again in a second.")
    assert statuses(3, token=new_token()) == [200, 429, 429], "of the address three fit"
    assert statuses(1, token=new_token()) == [200]
    assert statuses(1, token=new_token()) == [429]
    assert statuses(1, token=new_token(), address="192.0.2.2") == [200]
    assert statuses(1, after=60.0) == [200]


def test_gate_limits_keep_one_address_from_filling_the_room() -> None:
    limits, room = GateLimits().address_bytes, RoomLimits()
    minutes = (room.min_age_seconds + GateLimits().bodies.upload_seconds) / 60
    assert limits.burst + limits.per_minute * minutes < 0.8 * room.total_bytes
    assert room.arriving_seconds > GateLimits().bodies.upload_seconds
