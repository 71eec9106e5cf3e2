"""A public demo with secrets of another visitor, and a canary server that the app must not contact.

Each secret is a word that no answer may contain. The words are in a file beside the runs folder, in the app's
temporary folder, in an environment variable, and in the data of one visitor, Anna: labels and rows of a run,
an upload, and gradio's copy of it. Mallory sends the requests, has a run and an upload too, and knows every
name except Anna's token and link.
"""

import contextlib
import hashlib
import http.client
import io
import json
import random
import secrets
import shutil
import tempfile
import threading
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from app_server import serve
from gradio.utils import HASH_SEED_PATH
from small_data import write_small_data
from tiny import make_tiny_bert

from batteries.recorded_routes import RECORD_ROUTES
from batteries.workplace import settings_in
from peft_core import runs
from peft_core.access.visitors import TOKEN_HEADER, new_token, sha256_of
from peft_core.config import TrainConfig
from peft_core.data.uploads import store_upload
from peft_core.runs.ownership import Ownership, write_ownership
from peft_core.runs.store import UPLOADS
from peft_core.training.entry import train

API = "/gradio_api"
_PLACES = ("beside the runs", "temporary folder", "environment", "run", "upload", "canary server")
_LIFT_LIMITS = """
from functools import partial
from peft_core.access import gate, upload_room
from peft_core.access.rates import Rate
names = ("visitor", "address", "static")
names += ("visitor_uploads", "address_uploads", "visitor_bytes", "address_bytes")
names += ("visitor_sessions", "address_sessions")
rates = dict.fromkeys(names, Rate(1e12, 10**12))
gate.GateLimits = partial(gate.GateLimits, **rates, open_per_address=10_000, open_total=10_000)
gate.GateLimits = partial(gate.GateLimits, visitor_pending=10_000, address_pending=10_000)
upload_room.RoomLimits = partial(upload_room.RoomLimits, min_free_bytes=0)
from gradio import Blocks
Blocks.api_open = property(lambda blocks: True, lambda blocks, value: None)
"""


@dataclass(frozen=True)
class Party:
    """A visitor with a run and an upload.

    Attributes:
        token: of the visitor.
        run_id: of a finished run.
        upload: the folder of stored files.
    """

    token: str
    run_id: str
    upload: Path

    @property
    def owner(self) -> str:
        return sha256_of(self.token)

    @property
    def headers(self) -> dict[str, str]:
        return {TOKEN_HEADER: self.token}


@dataclass(frozen=True)
class Exhibit:
    """A running demo.

    Attributes:
        folder: contains the runs folder and the files beside it.
        canaries: the secret words by their location.
        hits: the requests that reached the canary server.
        anna: the owner of the secrets.
        mallory: the sender of the requests.
        names: of Anna's link, sessions and events, which Mallory knows.
        own_file: path of Mallory's upload in gradio's cache.
        numbers: draws a sample of the requests.
    """

    folder: Path
    port: int
    canary_port: int
    canaries: Mapping[str, str]
    hits: list[str]
    anna: Party
    mallory: Party
    config: dict[str, Any]
    routes: dict[str, list[str]]
    pid: int
    own_file: str
    names: dict[str, str]
    numbers: random.Random

    @property
    def runs_dir(self) -> Path:
        return self.folder / "runs"

    def leaks(self, headers: str, bodies: Sequence[bytes], sent: str) -> list[str]:
        """Return the locations of leaked secrets, and the path of the runs unless the request has it."""
        text = b"\n".join((headers.encode(), *bodies, *(data for body in bodies for data in _unzipped(body))))
        places = [place for place, word in self.canaries.items() if word.encode() in text]
        if str(self.runs_dir).encode() in text and str(self.runs_dir) not in sent:
            places.append("path of the runs")
        return places

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each protected file, and the names beside and in the runs folder."""
        owned = [self.runs_dir / self.anna.run_id, self.anna.upload, self.folder / "secret.txt"]
        files = [path for place in owned for path in (place, *place.rglob("*")) if path.is_file()]
        digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        names = [*self.folder.iterdir(), *self.runs_dir.iterdir()]
        return digests | {str(path): "" for path in names if not path.name.startswith("app-")}


@contextlib.contextmanager
def exhibit(seed: int = 0, broken: str = "") -> Iterator[Exhibit]:
    """Serve a public demo with secrets; `broken` is Python that breaks its guards."""
    with tempfile.TemporaryDirectory(prefix="forged-") as name:
        folder = Path(name)
        canaries = {place: f"canary{secrets.token_hex(12)}" for place in _PLACES}
        (folder / "tmp").mkdir()
        (folder / "secret.txt").write_text(canaries["beside the runs"])
        (folder / "tmp" / "secret.txt").write_text(canaries["temporary folder"])
        make_tiny_bert(folder / "model", with_head=False)
        routes, runs_dir = folder / "routes.json", folder / "runs"
        runs_dir.mkdir()
        environment = {"CANARY": canaries["environment"], "ROUTES": str(routes)}
        app = serve(runs_dir, "--public", "--mcp", patch=_LIFT_LIMITS + RECORD_ROUTES + broken, **environment)
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as starter:
            canary_port, hits = stack.enter_context(_canary_server(canaries["canary server"]))
            starting = starter.submit(stack.enter_context, app)
            mallory = _make_party(folder, "mallory", "", "")
            anna = _make_party(folder, "anna", canaries["run"], canaries["upload"])
            server = starting.result()
            with contextlib.suppress(OSError):  # without write access gradio has none
                canaries["hash seed"] = Path(HASH_SEED_PATH).read_text().strip()
            with urllib.request.urlopen(f"{server.url}/config", timeout=60) as answer:
                config = json.load(answer)
            port = int(server.url.rpartition(":")[2])
            upload_as(port, anna, f"text,label\n{canaries['upload']},good\n".encode())
            yield Exhibit(
                folder=folder,
                port=port,
                pid=server.process.pid,
                canary_port=canary_port,
                canaries=canaries,
                hits=hits,
                anna=anna,
                mallory=mallory,
                config=config,
                routes=json.loads(routes.read_text()),
                own_file=upload_as(port, mallory, b"text,label\nFine food.,good\nBad food.,bad\n"),
                names=_begin_sessions(port, runs_dir, anna),
                numbers=random.Random(seed),
            )


def upload_as(port: int, party: Party, content: bytes) -> str:
    """Upload a file; return its path in gradio's cache."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    headers = {**party.headers, "Content-Type": f"multipart/form-data; boundary={boundary}"}
    return _ask(port, "POST", f"{API}/upload?upload_id={party.owner[:8]}", body, headers)[0]


def _make_party(folder: Path, name: str, in_run: str, in_upload: str) -> Party:
    """Create a visitor with a trained run and an upload, each with a secret word.

    The run is trained in another folder: the app would train a waiting run in its own.
    """
    token, data = new_token(), write_small_data(folder / f"data-{name}")
    for path in data.iterdir():
        rows = path.read_text(encoding="utf-8").replace(",good", f",good{in_run}")
        path.write_text(rows.replace("The ", f"The {in_run} "), encoding="utf-8")
    settings = settings_in(folder, num_train_epochs=1, dataset_name=str(data))
    elsewhere, runs_dir = folder / f"runs-{name}", folder / "runs"
    run = runs.create(elsewhere, TrainConfig.from_dict(settings.to_dict()), owner=sha256_of(token))
    with contextlib.redirect_stdout(io.StringIO()):  # Trainer prints every loss
        train(run.folder)
    run.folder.rename(runs_dir / run.run_id)
    shutil.rmtree(elsewhere)
    reviews = folder / "reviews.csv"
    reviews.write_text(f"text,label\n{in_upload or 'Fine food.'},good\nBad food.,bad\n", encoding="utf-8")
    uploads = runs_dir.absolute() / UPLOADS / sha256_of(token)
    upload = store_upload([reviews], uploads).folder
    reviews.unlink()
    shutil.rmtree(data)
    return Party(token, run.run_id, upload)


def _begin_sessions(port: int, runs_dir: Path, anna: Party) -> dict[str, str]:
    """Let Anna share her run, request it and open a session; return all names but the link."""
    link, nonce = secrets.token_hex(32), secrets.token_hex(16)
    ownership = Ownership(owner=anna.owner, link_nonce=nonce, link_sha256=sha256_of(link))
    write_ownership(runs_dir / anna.run_id, ownership)
    headers = {**anna.headers, "Content-Type": "application/json"}
    body = json.dumps({"data": [anna.run_id]}).encode()
    called = _ask(port, "POST", f"{API}/call/status", body, headers)
    session = "annas-session"
    joined = json.dumps({"data": [anna.run_id], "fn_index": 1, "session_hash": session}).encode()
    queued = _ask(port, "POST", f"{API}/queue/join", joined, headers)
    return {
        "nonce": nonce, "link hash": sha256_of(link), "session": session, "call": called["event_id"],
        "event": queued["event_id"], "upload": anna.owner[:8], "owner": anna.owner,
    }  # fmt: skip


def _ask(port: int, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers))
        return json.load(connection.getresponse())
    finally:
        connection.close()


def _unzipped(answer: bytes) -> Iterator[bytes]:
    """Yield the files of an answer that is a zip."""
    if not answer.startswith(b"PK"):
        return
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(answer)) as archive:
        yield from (archive.read(name) for name in archive.namelist())


@contextlib.contextmanager
def _canary_server(word: str) -> Iterator[tuple[int, list[str]]]:
    """Serve a secret word on this machine and record the requests."""
    hits: list[str] = []

    class Canary(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(f"{self.command} {self.path}")
            self.send_response(302 if self.path.startswith("/redirect") else 200)
            self.send_header("Location", "/")
            self.end_headers()
            self.wfile.write(word.encode())

        do_HEAD = do_POST = do_PUT = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Canary) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], hits
        server.shutdown()
