"""A loopback HTTP server that implements enough of the Hub's protocol for its real clients."""

from __future__ import annotations

import hashlib
import json
import math
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from peft_core.models.presets import HUB_COMMITS

Kind = Literal["model", "dataset"]
Json = dict[str, Any]

LFS_SUFFIXES = (".safetensors", ".parquet")
DATE = "2024-01-01T00:00:00.000Z"
CHUNK_BYTES = 1 << 16
_REPO = r"(?P<id>[^/]+(?:/[^/]+)??)"
_API_PATH = re.compile(
    rf"/api/(?P<kind>model|dataset)s/{_REPO}"
    r"(?:/(?P<call>revision|tree|paths-info|refs)(?:/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?)?"
)
_FILE_PATH = re.compile(rf"/(?P<dataset>datasets/)?{_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_TASKS = {"ForSequenceClassification": "text-classification", "ForMaskedLM": "fill-mask"}


class HubError(Exception):
    """An error response in the form that Hub clients expect."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}


@dataclass(frozen=True)
class RepoFile:
    """One file of a repository with its git ID and, for large files, its LFS ID."""

    path: str
    source: Path
    size: int
    blob_id: str
    sha256: str | None
    pointer_size: int

    @classmethod
    def read(cls, path: str, source: Path) -> RepoFile:
        if not path.endswith(LFS_SUFFIXES):
            content = source.read_bytes()
            return cls(path, source, len(content), _git_blob_id(content), None, 0)
        with source.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size = source.stat().st_size
        pointer = f"oid sha256:{sha256}\nsize {size}\n".encode()
        return cls(path, source, size, _git_blob_id(pointer), sha256, len(pointer))

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id

    def sibling(self, with_blobs: bool) -> Json:
        entry: Json = {"rfilename": self.path}
        if with_blobs:
            entry |= {"size": self.size, "blobId": self.blob_id}
            if self.sha256:
                entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry

    def tree_entry(self) -> Json:
        entry: Json = {"type": "file", "path": self.path, "size": self.size, "oid": self.blob_id}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry

    def chunks(self, start: int, length: int) -> Iterator[bytes]:
        with self.source.open("rb") as stream:
            stream.seek(start)
            while length > 0 and (chunk := stream.read(min(length, CHUNK_BYTES))):
                length -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class Commit:
    """One commit of a repository, with its access rules and injected faults."""

    kind: Kind
    repo_id: str
    files: dict[str, RepoFile]
    gated: bool
    drop_after: int | None
    private: bool = False
    pinned: str | None = None

    @property
    def sha(self) -> str:
        if self.pinned is not None:
            return self.pinned
        listing = "".join(f"{file.etag} {path}\n" for path, file in sorted(self.files.items()))
        return hashlib.sha1(listing.encode()).hexdigest()

    def info(self, with_blobs: bool = False, expand: list[str] | None = None) -> Json:
        info: Json = {
            "_id": self.sha[:24],
            "id": self.repo_id,
            "author": self.repo_id.rpartition("/")[0] or None,
            "sha": self.sha,
            "lastModified": DATE,
            "createdAt": DATE,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "downloads": 1,
            "likes": 0,
            "usedStorage": sum(file.size for file in self.files.values()),
            "cardData": self._card(),
            "tags": [],
            "siblings": [file.sibling(with_blobs) for file in self.files.values()],
        }
        if self.kind == "model":
            info |= self._model_facts()
        return {key: info[key] for key in ("_id", "id", *expand) if key in info} if expand else info

    def _card(self) -> Json:
        card = self.files.get("README.md")
        parts = card.source.read_text(encoding="utf-8").split("---\n") if card else []
        return yaml.safe_load(parts[1]) or {} if len(parts) > 2 and not parts[0] else {}

    def _model_facts(self) -> Json:
        facts: Json = {"modelId": self.repo_id, "library_name": "transformers", "tags": ["transformers"]}
        if "config.json" in self.files:
            config = json.loads(self.files["config.json"].source.read_text(encoding="utf-8"))
            architectures = config.get("architectures") or []
            tasks = [task for name in architectures for end, task in _TASKS.items() if name.endswith(end)]
            facts["config"] = {"architectures": architectures, "model_type": config.get("model_type")}
            facts["pipeline_tag"] = tasks[0] if tasks else "feature-extraction"
            facts["tags"] += [config.get("model_type"), facts["pipeline_tag"]]
        if "model.safetensors" in self.files:
            facts["safetensors"] = _count_parameters(self.files["model.safetensors"].source)
            facts["tags"].append("safetensors")
        return facts

    def tree(self, prefix: str, recursive: bool, expand: bool) -> list[Json]:
        base = f"{prefix}/" if prefix else ""
        inside = [path for path in self.files if path.startswith(base)]
        if prefix and not inside:
            raise self.no_entry(prefix)
        folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents}
        paths = {*inside, *(folder for folder in folders - {"."} if folder.startswith(base))}
        return [
            self.entry(path, expand) for path in sorted(paths) if recursive or "/" not in path[len(base) :]
        ]

    def entry(self, path: str, expand: bool) -> Json:
        if path in self.files:
            entry = self.files[path].tree_entry()
        elif any(name.startswith(f"{path}/") for name in self.files):
            oid = hashlib.sha1(f"{self.sha} {path}".encode()).hexdigest()
            entry = {"type": "directory", "path": path, "size": 0, "oid": oid}
        else:
            raise self.no_entry(path)
        if expand:
            entry["lastCommit"] = {"id": self.sha, "title": "Add files", "date": DATE}
        return entry

    def known_entries(self, paths: list[str], expand: bool) -> list[Json]:
        entries = []
        for path in paths:
            with suppress(HubError):
                entries.append(self.entry(path, expand))
        return entries

    def refs(self) -> Json:
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.sha}
        return {"branches": [main], "converts": [], "tags": [], "pullRequests": []}

    def no_entry(self, path: str) -> HubError:
        return HubError(404, "EntryNotFound", f"{path} does not exist on this revision", self.headers())

    def headers(self) -> dict[str, str]:
        return {"X-Repo-Commit": self.sha}


class HubServer:
    """Serve folders as Hub repositories while the context lasts; an added folder must not change."""

    endpoint: str

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self._repos: dict[tuple[str, str], dict[str, Commit]] = {}

    def add_repo(
        self,
        kind: Kind,
        repo_id: str,
        folder: Path,
        *,
        gated: bool = False,
        drop_after: int | None = None,
        private: bool = False,
    ) -> str:
        """Publish a folder as the main branch and return its commit; a preset's first is the pinned one."""
        paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        files = {name: RepoFile.read(name, path) for name, path in sorted(paths.items())}
        pinned = None if (kind, repo_id) in self._repos else HUB_COMMITS.get(repo_id)
        commit = Commit(kind, repo_id, files, gated, drop_after, private, pinned)
        self._repos.setdefault((kind, repo_id), {}).update({commit.sha: commit, "main": commit})
        return commit.sha

    def find(self, kind: str, repo_id: str, revision: str | None) -> Commit:
        commits = self._repos.get((kind, repo_id))
        if commits is None:
            raise HubError(404, "RepoNotFound", "Repository not found")
        if (revision or "main") not in commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commits[revision or "main"]

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the request handler class."""
        return Handler

    def downloads(self) -> list[str]:
        """Return the paths, within their repositories, of the downloaded files, in order."""
        matches = [_FILE_PATH.fullmatch(path) for method, path in self.requests if method == "GET"]
        return [match["path"] for match in matches if match]

    def __enter__(self) -> HubServer:
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), hub.handler())
        self.hub = hub
        self._open: set[Any] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        self._open.add(request)
        return request, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Stop listening and close the connections that clients keep alive."""
        self.shutdown()
        self.server_close()
        for request in tuple(self._open):
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    """Answer requests that read from the Hub."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.server.hub.requests.append((self.command, unquote(url.path)))
        try:
            if match := _API_PATH.fullmatch(url.path):
                self._answer_api(match, parse_qs(body if self.command == "POST" else url.query))
            elif match := _FILE_PATH.fullmatch(url.path):
                self._answer_file(match)
            else:
                raise HubError(404, "NotFound", f"Nothing is served at {url.path}")
        except HubError as error:
            self._send_json({"error": str(error)}, error.status, error.headers)

    do_GET = do_HEAD = do_POST = _answer

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""

    def _answer_api(self, match: re.Match[str], query: dict[str, list[str]]) -> None:
        revision, path = (unquote(match[name] or "") for name in ("rev", "path"))
        commit = self.server.hub.find(match["kind"], unquote(match["id"]), revision)
        if match["call"] == "tree":
            answer: Any = commit.tree(path, _flag(query, "recursive"), _flag(query, "expand"))
        elif match["call"] == "paths-info":
            answer = commit.known_entries(query.get("paths", []), _flag(query, "expand"))
        elif match["call"] == "refs":
            answer = commit.refs()
        else:
            answer = commit.info(_flag(query, "blobs"), query.get("expand"))
        self._send_json(answer, 200, commit.headers())

    def _answer_file(self, match: re.Match[str]) -> None:
        kind = "dataset" if match["dataset"] else "model"
        commit = self.server.hub.find(kind, unquote(match["id"]), unquote(match["rev"]))
        if commit.gated:
            status = 403 if "Authorization" in self.headers else 401
            raise HubError(status, "GatedRepo", f"Access to {kind} {commit.repo_id} is restricted")
        path = unquote(match["path"])
        if path not in commit.files:
            raise commit.no_entry(path)
        self._send_file(commit, commit.files[path])

    def _send_file(self, commit: Commit, file: RepoFile) -> None:
        start, stop = _byte_range(self.headers.get("Range"), file.size)
        headers = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", **commit.headers()}
        if file.sha256:
            headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        partial = "Range" in self.headers
        if partial:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        self._send_head(206 if partial else 200, stop - start, "application/octet-stream", headers)
        if self.command == "GET":
            self._send_content(file, start, stop - start, commit.drop_after)

    def _send_content(self, file: RepoFile, start: int, length: int, drop_after: int | None) -> None:
        if drop_after is not None and drop_after < length:
            length = drop_after
            self.close_connection = True
        for chunk in file.chunks(start, length):
            self.wfile.write(chunk)

    def _send_json(self, answer: Any, status: int, headers: dict[str, str]) -> None:
        content = json.dumps(answer).encode()
        self._send_head(status, len(content), "application/json; charset=utf-8", headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_head(self, status: int, length: int, content_type: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, content in {**headers, "Content-Type": content_type, "Content-Length": str(length)}.items():
            self.send_header(name, content)
        self.end_headers()


def _flag(query: dict[str, list[str]], name: str) -> bool:
    return query.get(name, [""])[0].lower() in ("true", "1")


def _byte_range(header: str | None, size: int) -> tuple[int, int]:
    """Return the half-open range that a Range header requests; the whole file without a header."""
    if header is None:
        return 0, size
    match = _RANGE.fullmatch(header.strip())
    first, last = match.groups() if match else ("", "")
    if not first:
        start, stop = size - min(int(last or 0), size), size
    else:
        start, stop = int(first), min(int(last or size) + 1, size)
    if start >= stop:
        headers = {"Content-Range": f"bytes */{size}"}
        raise HubError(416, "RangeNotSatisfiable", f"No such range: {header}", headers)
    return start, stop


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _count_parameters(weights: Path) -> Json:
    """Count parameters per dtype from the header of a safetensors file."""
    with weights.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    counts: dict[str, int] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return {"parameters": counts, "total": sum(counts.values())}
