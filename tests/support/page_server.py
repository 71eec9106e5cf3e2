"""Folders served on loopback for the tests of an exported page, with a record of the requests."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SEND_AND_WAIT = """(url) => new Promise((resolve) => {  // both are refused, each with an event
  const refused = [];
  document.addEventListener('securitypolicyviolation', (event) => {
    if (refused.push(event.effectiveDirective) === 2) resolve(refused.sort());
  });
  new Image().src = url;
  navigator.sendBeacon(url, 'secret');
})"""


@dataclass
class Folder:
    """A served folder: its address and the requested paths."""

    url: str
    requested_paths: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[Folder]:
    """Serve files as a static host does, readable by pages of other origins."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requested_paths.append(self.path)
            with contextlib.suppress(ConnectionError):  # a closed page stops reading
                super().do_GET()

        def end_headers(self) -> None:
            self.send_header("Access-Control-Allow-Origin", "*")
            super().end_headers()

        def log_message(self, *words: object) -> None:
            """Discard the message."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    served = Folder(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
