"""The write API of the loopback Hub: accounts, repositories, large files and commits, strictly checked."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from hub_server import LFS_SUFFIXES, Commit, Handler, HubError, HubServer, Json

_ID = r"(?P<id>[^/]+/[^/]+?)"
_ROUTES = [
    (method, re.compile(pattern), name)
    for method, pattern, name in (
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/validate-yaml", "validate"),
        ("POST", "/api/repos/create", "create"),
        ("DELETE", "/api/repos/delete", "delete"),
        ("POST", rf"/api/models/{_ID}/preupload/main", "preupload"),
        ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", "put"),
        ("POST", rf"/api/verify/{_ID}", "verify"),
        ("GET", rf"/api/models/{_ID}/xet-write-token/main", "xet"),
        ("POST", rf"/api/models/{_ID}/commit/main", "commit"),
    )
]
_BASE_MODEL = re.compile(r"[\w.-]+/[\w.-]+")
DROP = "drop"  # a fault that cuts the connection instead of answering


@dataclass(frozen=True)
class Person:
    """The owner of a token.

    Attributes:
        whoami: Response of the whoami endpoint.
        writes: Namespaces and repositories that the token may write to, whatever whoami says.
        faults: Calls that fail for this token, each with a status or DROP.
    """

    whoami: Json
    writes: frozenset[str]
    faults: Json


@dataclass
class Pushed:
    """One commit that the Hub accepted."""

    repo_id: str
    summary: str
    paths: list[str]
    deleted: list[str]
    large: dict[str, str] = field(default_factory=dict)  # SHA-256 by path


class WritableHub(HubServer):
    """A Hub that stores its repositories in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.people: dict[str, Person] = {}
        self.pushed: list[Pushed] = []
        self.objects, self.xet_store = folder / "objects", folder / "xet"
        self._trees = (folder / f"tree-{i}" for i in itertools.count())
        self.objects.mkdir(parents=True)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        return _Handler

    def add_person(
        self,
        token: str,
        name: str,
        writes: tuple[str, ...] = (),
        *,
        access: Json | None = None,
        orgs: tuple[Json, ...] = (),
        faults: Json | None = None,
    ) -> None:
        """Register a token; `access` is its entry in whoami, by default a token with the role `write`."""
        auth = {"type": "access_token", "accessToken": access or {"displayName": "test", "role": "write"}}
        whoami = {"type": "user", "id": "1", "name": name, "fullname": name, "orgs": list(orgs), "auth": auth}
        self.people[token] = Person(whoami, frozenset(writes), faults or {})

    def exists(self, repo_id: str) -> bool:
        return ("model", repo_id) in self._repos

    def publish(self, repo_id: str, files: dict[str, Path | bytes], private: bool) -> Commit:
        """Publish files by path as the newest commit of a repository."""
        tree = next(self._trees)
        for path, content in files.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content)
        self.add_repo("model", repo_id, tree, private=private)
        return self.find("model", repo_id, None)

    def remove(self, repo_id: str) -> None:
        del self._repos[("model", repo_id)]

    def in_xet(self, oid: str) -> bool:
        """Return whether a file with this SHA-256 is in the xet store, whose words are little-endian."""
        raw = bytes.fromhex(oid)
        stored_id = b"".join(raw[i : i + 8][::-1] for i in range(0, 32, 8))
        return any(stored_id in path.read_bytes() for path in self.xet_store.rglob("shards/*.mdb"))


class _Handler(Handler):
    server: Any

    def _answer(self) -> None:
        self._hub: WritableHub = self.server.hub
        url = urlsplit(self.path)
        for method, pattern, name in _ROUTES:
            match = pattern.fullmatch(url.path)
            if match and method == self.command:
                self._hub.requests.append((method, unquote(url.path)))
                return self._take(name, match)
        return super()._answer()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _take(self, name: str, match: re.Match[str]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        person = self._hub.people.get(self._token())
        fault = person.faults.get(name) if person else None
        if fault == DROP:
            self.close_connection = True
            return
        try:
            if fault:
                raise HubError(fault, "", "as the test wished")
            parts = {key: unquote(text) for key, text in match.groupdict().items()}
            answer, headers = getattr(self, f"_{name}")(body, **parts), {}
            if isinstance(answer, tuple):
                answer, headers = answer
            self._send_json(answer, 200, headers)
        except HubError as error:
            self._send_json({"error": str(error), "errors": [], "warnings": []}, error.status, error.headers)

    # reading: a private repository is reported as not found without access

    def _answer_api(self, match: re.Match[str], query: dict[str, list[str]]) -> None:
        self._check_visible(match["kind"], unquote(match["id"]))
        super()._answer_api(match, query)

    def _answer_file(self, match: re.Match[str]) -> None:
        self._check_visible("dataset" if match["dataset"] else "model", unquote(match["id"]))
        super()._answer_file(match)

    def _check_visible(self, kind: str, repo_id: str) -> None:
        if self._hub.find(kind, repo_id, None).private and not self._may_write(repo_id):
            raise HubError(401, "RepoNotFound", "Repository not found")

    # writing

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _person(self) -> Person:
        if self._token() not in self._hub.people:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return self._hub.people[self._token()]

    def _may_write(self, repo_id: str) -> bool:
        person = self._hub.people.get(self._token())
        return person is not None and bool({repo_id, repo_id.partition("/")[0]} & person.writes)

    def _check_write(self, repo_id: str) -> None:
        self._person()
        if not self._may_write(repo_id):
            raise HubError(403, "", "You don't have the rights to write to this namespace")

    def _whoami(self, body: bytes) -> Json:
        return self._person().whoami

    def _validate(self, body: bytes) -> Json:
        sent = json.loads(body)
        _need(sent["repoType"] == "model", "a model's card")
        _check_card(sent["content"])
        return {"errors": [], "warnings": []}

    def _create(self, body: bytes) -> Json:
        sent = json.loads(body)
        _need(sent.keys() == {"name", "organization", "visibility"}, "name, organization and visibility")
        _need(sent["visibility"] in ("private", "public"), "a visibility")
        repo_id = f"{sent['organization']}/{sent['name']}"
        if sent["organization"] not in self._person().writes:
            raise HubError(403, "", "You don't have the rights to create a model under this namespace")
        if self._hub.exists(repo_id):
            raise HubError(409, "", "You already created this model repo")
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        private = sent["visibility"] == "private"
        self._hub.publish(repo_id, {".gitattributes": attributes.encode()}, private)
        return {"url": f"{self._hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}

    def _delete(self, body: bytes) -> Json:
        sent = json.loads(body)
        repo_id = f"{sent['organization']}/{sent['name']}"
        self._check_write(repo_id)
        self._hub.find("model", repo_id, None)
        self._hub.remove(repo_id)
        return {}

    def _preupload(self, body: bytes, id: str) -> Json:
        self._check_write(id)
        files, modes = self._hub.find("model", id, None).files, []
        for file in json.loads(body)["files"]:
            _need(len(base64.b64decode(file["sample"], validate=True)) <= 512, "a sample of 512 bytes")
            _need(isinstance(file["size"], int), "a size")
            large = file["path"].endswith(LFS_SUFFIXES)
            oid = files[file["path"]].etag if file["path"] in files else None
            mode = "lfs" if large else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": modes, "commitOid": self._hub.find("model", id, None).sha}

    def _batch(self, body: bytes, id: str) -> Json:
        self._check_write(id)
        sent = json.loads(body)
        _need(sent["operation"] == "upload" and sent["hash_algo"] == "sha256", "an upload by SHA-256")
        _need("basic" in sent["transfers"], "the basic transfer")
        end = self._hub.endpoint
        return {
            "transfer": "basic",
            "objects": [
                {**file}
                if (self._hub.objects / file["oid"]).is_file()
                else {
                    **file,
                    "actions": {
                        "upload": {"href": f"{end}/storage/{file['oid']}?signature=1"},
                        "verify": {"href": f"{end}/api/verify/{id}"},
                    },
                }
                for file in sent["objects"]
            ],
        }

    def _put(self, body: bytes, oid: str) -> Json:
        _need("Authorization" not in self.headers, "no token where the address itself is signed")
        _need(urlsplit(self.path).query == "signature=1", "the signed address")
        _need(hashlib.sha256(body).hexdigest() == oid, "the bytes of this SHA-256")
        (self._hub.objects / oid).write_bytes(body)
        return {}

    def _verify(self, body: bytes, id: str) -> Json:
        self._check_write(id)
        sent = json.loads(body)
        path = self._hub.objects / sent["oid"]
        _need(path.is_file() and path.stat().st_size == sent["size"], "an object that was uploaded")
        return {}

    def _xet(self, body: bytes, id: str) -> tuple[Json, dict[str, str]]:
        self._check_write(id)
        store, until = f"local://{self._hub.xet_store}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(until)}
        return {"casUrl": store, "accessToken": "x", "exp": until}, headers

    def _commit(self, body: bytes, id: str) -> Json:
        self._check_write(id)
        _need(self.headers["Content-Type"] == "application/x-ndjson", "lines of JSON")
        first, *operations = (json.loads(line) for line in body.splitlines())
        _need(first["key"] == "header" and first["value"]["summary"], "a header with a summary")
        _need(operations, "an operation")
        head = self._hub.find("model", id, None)
        if first["value"].get("parentCommit", head.sha) != head.sha:
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        files: dict[str, Path | bytes] = {path: file.source for path, file in head.files.items()}
        pushed = Pushed(id, first["value"]["summary"], [], [])
        for operation in operations:
            self._apply(operation["key"], operation["value"], files, pushed)
        commit = self._hub.publish(id, files, head.private)
        self._hub.pushed.append(pushed)
        url = f"{self._hub.endpoint}/{id}/commit/{commit.sha}"
        return {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""}

    def _apply(self, key: str, sent: Json, files: dict[str, Path | bytes], pushed: Pushed) -> None:
        path = sent["path"]
        _need(path not in (*pushed.paths, *pushed.deleted), "each path once")
        if key == "deletedFile":
            _need(path in files, "a file to delete")
            del files[path]
            pushed.deleted.append(path)
            return
        pushed.paths.append(path)
        if key == "file":
            _need(sent["encoding"] == "base64" and not path.endswith(LFS_SUFFIXES), "a small file in base64")
            files[path] = base64.b64decode(sent["content"], validate=True)
            if path == "README.md":
                _check_card(files[path].decode())
            return
        _need(key == "lfsFile" and sent["algo"] == "sha256", "a known operation")
        stored = self._hub.objects / sent["oid"]
        if stored.is_file():
            _need(stored.stat().st_size == sent["size"], "the size of the object")
            files[path] = stored
        else:  # files in the xet store are not served again, only their pointer
            _need(self._hub.in_xet(sent["oid"]), "an object that was uploaded before")
            files[path] = f"oid sha256:{sent['oid']}\n".encode()
        pushed.large[path] = sent["oid"]


def _need(is_met: object, requirement: str) -> None:
    if not is_met:
        raise HubError(400, "", f"this needs {requirement}")


def _check_card(text: str) -> None:
    """Check the metadata as the Hub does: a YAML header, a valid base model, a complete model-index."""
    parts = text.split("\n---\n", 1)
    _need(parts[0].startswith("---\n") and len(parts) == 2, "a header of YAML")
    card = yaml.safe_load(parts[0].removeprefix("---\n"))
    _need(_BASE_MODEL.fullmatch(card.get("base_model", "a/b")), "a hub id as base_model")
    relations = (None, "adapter", "finetune", "merge", "quantized")
    _need(card.get("base_model_relation") in relations, "a known relation to the base model")
    for model in card.get("model-index", ()):
        for evaluation in model["results"]:
            _need(
                evaluation["task"]["type"]
                and evaluation["dataset"]["type"]
                and evaluation["dataset"]["name"],
                "names",
            )
            _need(all("type" in metric and "value" in metric for metric in evaluation["metrics"]), "metrics")
