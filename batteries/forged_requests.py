"""Requests that Mallory sends: paths, payloads, URLs and names of others; each kind is a family."""

import itertools
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from batteries.forged_exhibit import API, Exhibit
from peft_core.access.visitors import LINK_HEADER, TOKEN_HEADER

TAG = "<forged onload=x>"
MAX_SINGLE_SLOTS = 9  # a function with more slots gets each value in all text slots at once
CALLS_PER_FUNCTION = 4
PAYLOADS_PER_ENDPOINT = 8
MAX_PER_FAMILY = 800
_TEXT_SLOTS = ("api", "dropdown", "radio", "textbox", "state", "file", "checkboxgroup", "dataset")
_OTHER_FIELD = "../files"
_META = {"_type": "gradio.FileData"}
_JSON = {"Content-Type": "application/json"}
_MCP = {**_JSON, "Accept": "application/json, text/event-stream"}


@dataclass(frozen=True)
class Forged:
    """One request; the answer of a queued function is read afterwards.

    Attributes:
        family: the kind of forgery.
        is_queued: whether the answer comes in a stream of the session in the body.
    """

    family: str
    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_queued: bool = False

    @property
    def sent(self) -> str:
        """The whole request, with its path also unquoted twice."""
        plain = urllib.parse.unquote(urllib.parse.unquote(self.path))
        return f"{self.path} {plain} {self.headers} {self.body.decode('utf-8', 'replace')}"

    def __str__(self) -> str:
        return f"{self.method} {self.path[:120]} {self.body[:200].decode('utf-8', 'replace')}"


def all_requests(exhibit: Exhibit, share: float) -> list[Forged]:
    """Return a shuffled share of each family."""
    chosen: list[Forged] = []
    for family in (paths, addresses, routes, functions, direct_calls, mcp_calls, tokens, sessions, uploads):
        requests = list(family(exhibit))
        count = len(requests) if family is functions else min(len(requests), MAX_PER_FAMILY)
        chosen += exhibit.numbers.sample(requests, max(1, round(count * share)))
    exhibit.numbers.shuffle(chosen)
    return chosen


# Paths


def secret_paths(exhibit: Exhibit) -> list[str]:
    """Return paths of secrets on the server, in several spellings."""
    folder, run = exhibit.folder, exhibit.runs_dir / exhibit.anna.run_id
    return [
        str(folder / "secret.txt"),
        str(folder / "tmp" / "secret.txt"),
        str(run / "owner.json"),
        str(run / "config.json"),
        str(run / "evaluation" / "result.json"),
        str(run / "evaluation" / "evaluation.parquet"),
        str(run / "adapter" / "adapter_model.safetensors"),
        str(exhibit.anna.upload / "reviews.csv"),
        str(exhibit.runs_dir),
        str(folder / "tmp" / "gradio"),
        f"{folder}/tmp/gradio/../secret.txt",
        "/proc/self/environ",
        f"/proc/{exhibit.pid}/environ",
        f"/proc/self/root{folder}/secret.txt",
        f"/proc/{exhibit.pid}/cwd/../..{folder}/secret.txt",
        "/dev/fd/0",
        "/etc/passwd",
    ]


_ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda path: path,
    "escaped": lambda path: urllib.parse.quote(path, safe=""),
    "escaped twice": lambda path: urllib.parse.quote(urllib.parse.quote(path, safe=""), safe=""),
    "up": lambda path: "../" * 12 + path.lstrip("/"),
    "up, escaped dots": lambda path: "%2e%2e/" * 12 + path.lstrip("/"),
    "up, escaped": lambda path: urllib.parse.quote("../" * 12 + path.lstrip("/"), safe=""),
    "up, escaped twice": lambda path: "%252e%252e%252f" * 12 + path.lstrip("/"),
    "up, doubled": lambda path: "....//" * 12 + path.lstrip("/"),
    "up, backslashes": lambda path: ("../" * 12 + path.lstrip("/")).replace("/", "\\"),
    "up, escaped backslashes": lambda path: ("../" * 12 + path.lstrip("/")).replace("/", "%5c"),
    "up, after a folder": lambda path: "assets/" + "../" * 12 + path.lstrip("/"),
    "overlong": lambda path: "%c0%ae%c0%ae/" * 12 + path.lstrip("/"),
    "NUL": lambda path: path + "%00.png",
    "NUL first": lambda path: "%00" + path,
    "two slashes": lambda path: "/" + path,
    "dots between": lambda path: path.replace("/", "/./"),
    "semicolon": lambda path: path.replace("/", "/;/"),
    "drive": lambda path: "C:" + path.replace("/", "\\"),
    "device": lambda path: "\\\\?\\C:" + path.replace("/", "\\"),
    "share": lambda path: "\\\\127.0.0.1\\c$" + path.replace("/", "\\"),
    "scheme": lambda path: "file://" + path,
    "home": lambda path: "~root/.." + path,
}
_PREFIXES = (
    "/file=", f"{API}/file=", f"{API}/file/", "/static/", "/assets/", "/svelte/", "/pwa_icon/",
    f"{API}/custom_component/x/client/component/", "/custom_component/x/client/",
    f"{API}/stream/x/1/1/", "/", f"{API}/",
)  # fmt: skip


def paths(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield requests for files of the server by file URLs."""
    for prefix, path, encode in itertools.product(_PREFIXES, secret_paths(exhibit), _ENCODINGS.values()):
        target = (prefix + encode(path)).replace(" ", "%20")
        yield Forged("a path", "GET", target, exhibit.mallory.headers)


# Addresses


def secret_addresses(exhibit: Exhibit) -> list[str]:
    """Return URLs of the canary server and of files, in several spellings."""
    port = exhibit.canary_port
    hosts = ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1", "0", "0x7f000001",
             "2130706433", "0177.0.0.1", "me@127.0.0.1", "attacker.test@127.0.0.1", "127.0.0.1.nip.io",
             "ⓛocalhost")  # fmt: skip
    return [
        *(f"http://{host}:{port}/secret" for host in hosts),
        f"http://127.0.0.1:{port}/redirect",
        f"HTTP://127.0.0.1:{port}/",
        f"http:/127.0.0.1:{port}/",
        f"http:\\\\127.0.0.1:{port}\\",
        f"https://127.0.0.1:{port}/",
        f"//127.0.0.1:{port}/",
        f" http://127.0.0.1:{port}/",
        f"http%3a//127.0.0.1:{port}/",
        f"http://127.0.0.1:{exhibit.port}/monitoring",
        "http://169.254.169.254/latest/meta-data/",
        f"file://{exhibit.folder}/secret.txt",
        f"file://localhost{exhibit.folder}/secret.txt",
        f"ftp://127.0.0.1:{port}/",
        f"gopher://127.0.0.1:{port}/_GET%20/",
        f"hf://127.0.0.1:{port}/x",
        f"jar:http://127.0.0.1:{port}!/x",
    ]


def addresses(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield requests with URLs for the app to fetch, in paths and headers."""
    prefixes = ("/file=", f"{API}/file=", f"{API}/file/", "/proxy=", f"{API}/proxy=", "/assets/", "/static/")
    for prefix, address, method in itertools.product(prefixes, secret_addresses(exhibit), ("GET", "HEAD")):
        for escaped in (urllib.parse.quote(address, safe=":/@[]%\\"), urllib.parse.quote(address, safe="")):
            yield Forged("an address", method, prefix + escaped, exhibit.mallory.headers)
    host = f"127.0.0.1:{exhibit.canary_port}"
    for name, path in itertools.product(
        (
            "X-Forwarded-Host",
            "X-Gradio-Server",
            "X-Original-Url",
            "Forwarded",
            "X-Forwarded-Proto",
            "Referer",
        ),
        ("/", "/config", f"{API}/info", f"{API}/openapi.json", f"{API}/deep_link"),
    ):
        yield Forged("an address", "GET", path, {**exhibit.mallory.headers, name: f"http://{host}/"})


# Routes


def odd_names(exhibit: Exhibit) -> list[str]:
    """Return names of another visitor's data, and names that do not exist."""
    run_id, upload = exhibit.anna.run_id, exhibit.anna.upload
    own = exhibit.mallory.run_id
    return [
        run_id, f"./{run_id}", f"{run_id}/", f"{run_id}\0", f"{own}/../{run_id}", f"../runs/{run_id}",
        run_id.upper(), f" {run_id} ", str(exhibit.runs_dir / run_id), "..", ".", "../secret.txt", ".uploads",
        f"{run_id}/adapter", str(exhibit.folder / "secret.txt"), "%2e%2e%2fsecret.txt",
        run_id.replace("-", "‐"),
        f"upload:{upload.name}", f"upload:../{exhibit.anna.owner}/{upload.name}", str(upload),
        f"upload:{upload}", f"upload:{upload.name}/../{upload.name}",
        f"../{exhibit.anna.owner}/{upload.name}",
        TAG, "{{7919*7907}}", "${7919*7907}", "{run.folder}", "%(runs_dir)s", "__class__",
        "' OR 1=1 --", "x" * 5000,
    ]  # fmt: skip


def routes(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield every method and route with odd names in path, query and body."""
    values = [*odd_names(exhibit), *exhibit.names.values(), "/proc/self/environ"]
    for (path, methods), name in itertools.product(exhibit.routes.items(), values):
        target = urllib.parse.quote(name, safe="")
        filled = "".join(target if part.startswith("{") else part for part in _path_parts(path))
        query = urllib.parse.urlencode({"session_hash": name, "run": name, "path": name, "key": name})
        body = _json({"data": [name], "event_id": name, "fn_name": name, "path": name})
        for method in methods:
            has_body = method == "post"
            yield Forged("a route", method.upper(), f"{filled}?{query}",
                         {**exhibit.mallory.headers, **(_JSON if has_body else {})},
                         body if has_body else b"")  # fmt: skip


def _path_parts(path: str) -> Iterator[str]:
    """Split a route's path into parameters in braces and the rest."""
    for part in path.split("{"):
        name, brace, rest = part.rpartition("}")
        if brace:
            yield "{" + name
        yield rest


# Functions


def file_payloads(exhibit: Exhibit) -> list[Any]:
    """Return values that gradio accepts as files, with paths of the server or URLs."""
    path, *others = secret_paths(exhibit)
    upload, parquet = str(exhibit.anna.upload / "reviews.csv"), others[4]
    address = f"http://127.0.0.1:{exhibit.canary_port}/redirect"
    whole = [{"path": name, "meta": _META, "orig_name": "a.csv"} for name in (path, *others)]
    addressed = [{"path": name, "url": name, "meta": _META} for name in secret_addresses(exhibit)[:16]]
    return [
        *whole,
        *addressed,
        {"path": exhibit.own_file, "url": address, "meta": _META},
        {"path": exhibit.own_file, "orig_name": "../../secret.txt", "meta": _META},
        {"path": exhibit.own_file, "orig_name": f"{TAG}.csv", "meta": _META},
        {"path": exhibit.own_file + "/../../../secret.txt", "meta": _META},
        {"path": f"{API}/file={path}", "url": f"{API}/file={path}", "meta": _META},
        {"path": path, "meta": _META, "is_stream": True},
        {"path": upload, "meta": {"_type": "gradio.FileData", "x": 1}},
        {"path": [path], "meta": _META},
        {"path": path, "meta": _META, "mime_type": "text/html", "size": -1, "b64": "x"},
        [{"path": parquet, "meta": _META}],
        {"a": [{"b": {"path": path, "meta": _META}}], "path": "x"},
        {"name": path, "is_file": True, "data": None},
        {"name": path, "data": f"file={path}", "is_file": True},
        path,
        f"file={path}",
        {"headers": ["a"], "data": [[{"path": path, "meta": _META}]], "metadata": None},
        {"video": {"path": path, "meta": _META}},
        {"text": "x", "files": [{"path": path, "meta": _META}]},
        {"__type__": "update", "value": {"path": path, "meta": _META}, "choices": [path]},
        {"__type__": "generic_update", "value": path},
    ]


def functions(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield calls of every function by number, with a sample of odd names and files in its slots."""
    types = {part["id"]: (part["type"], part["props"].get("value")) for part in exhibit.config["components"]}
    sessions = (f"forged-{number}" for number in itertools.count())
    values = [*odd_names(exhibit), *file_payloads(exhibit)]
    for function in exhibit.config["dependencies"]:
        slots = [types.get(slot, ("api", None)) for slot in function["inputs"]]
        fillings = list(_fillings(slots, values))
        for payload, data in exhibit.numbers.sample(fillings, min(CALLS_PER_FUNCTION, len(fillings))):
            body = {
                "fn_index": function["id"],
                "data": data,
                "session_hash": next(sessions),
                "trigger_id": (function["targets"] or [[None]])[0][0],
                "event_data": {"index": [0, 0], "value": payload, "row_value": [payload], "selected": True},
            }
            headers = {**exhibit.mallory.headers, **_JSON}
            yield Forged("a function's inputs", "POST", f"{API}/queue/join", headers, _json(body), True)


def _fillings(slots: list[tuple[str, Any]], values: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield values and inputs: each value in one slot at a time, or in all text slots."""
    defaults = [payload for _, payload in slots]
    for payload in values:
        if len(slots) > MAX_SINGLE_SLOTS or not slots:
            yield payload, [payload if slot_type in _TEXT_SLOTS else default for slot_type, default in slots]
            continue
        for number in range(len(slots)):
            yield payload, [payload if slot == number else default for slot, default in enumerate(defaults)]


def direct_calls(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield calls of every endpoint by name, with odd names and files, on direct and queued routes."""
    own = exhibit.mallory.run_id
    public_functions = [each for each in exhibit.config["dependencies"] if each["api_visibility"] == "public"]
    values = [*odd_names(exhibit), *file_payloads(exhibit)]
    for function, payload in itertools.product(
        public_functions, exhibit.numbers.sample(values, PAYLOADS_PER_ENDPOINT)
    ):
        count, name = len(function["inputs"]), function["api_name"]
        settings = {"dataset_name": payload, "model_name_or_path": payload}
        fillings = [[payload] * count, [settings] * count, [own, *[payload] * (count - 1)]][
            : 2 if count < 2 else 3
        ]
        for route, data in itertools.product(("run", "api", "call"), fillings):
            body = _json({"data": data, "session_hash": None})
            yield Forged("an endpoint's inputs", "POST", f"{API}/{route}/{name}",
                         {**exhibit.mallory.headers, **_JSON}, body, is_queued=route == "call")  # fmt: skip


def mcp_calls(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield calls of every MCP tool with odd names, files and URLs, and of unknown prompts and resources."""
    tools = [
        each["api_name"] for each in exhibit.config["dependencies"] if each["api_visibility"] == "public"
    ]
    headers = {**exhibit.mallory.headers, **_MCP}

    def ask(method: str, parameters: dict[str, Any]) -> Forged:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        return Forged("an MCP call", "POST", f"{API}/mcp/", headers, _json(body))

    for tool, payload in itertools.product(tools, [*odd_names(exhibit), *file_payloads(exhibit)]):
        arguments = {"run_id": payload, "settings": {"dataset_name": payload}, "kind": payload, "text": "x"}
        yield ask("tools/call", {"name": tool, "arguments": arguments})
    for address in (*secret_addresses(exhibit), *secret_paths(exhibit)):
        yield ask("resources/read", {"uri": address if "://" in address else f"file://{address}"})
        yield ask("prompts/get", {"name": address})


# Tokens, sessions and uploads


def tokens(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield requests for Anna's runs with wrong tokens and links, or with tokens in wrong headers."""
    names, anna = exhibit.names, exhibit.anna
    values = (*names.values(), anna.run_id, anna.owner.upper(), f"{anna.owner}\t", "", "null", "0" * 64, "*",
              names["nonce"] * 2, anna.token.upper(), anna.token[:-1], f"{anna.token},", f'"{anna.token}"',
              f"{anna.token};{anna.token}")  # fmt: skip
    headers: list[dict[str, str]] = [
        *({TOKEN_HEADER: value} for value in values),
        *({LINK_HEADER: value, **exhibit.mallory.headers} for value in values),
        *({header: anna.token} for header in ("Cookie", "Authorization", "X-Visitor", "X_Visitor_Token")),
        *({"X-Gradio-User": value} for value in ("mcp", anna.owner)),
        *({"X-Forwarded-For": value} for value in ("127.0.0.1", TAG)),
    ]
    calls = {name: [anna.run_id] for name in ("status", "stop", "delete", "merge")}
    calls |= {"runs": [], "download": [anna.run_id, "adapter"], "predict": ["x", anna.run_id, "adapter", ""]}
    for header, (name, data) in itertools.product(headers, calls.items()):
        body = _json({"data": data})
        yield Forged("a token", "POST", f"{API}/run/{name}", {**header, **_JSON}, body)
    for header in headers[::4]:
        yield Forged("a token", "GET", f"/?run={anna.run_id}", header)
        yield Forged("a token", "GET", f"/config?run={anna.run_id}&key={names['link hash']}", header)


def sessions(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield requests for Anna's sessions and events by id."""
    parties = (exhibit.mallory.headers, {}, {"X-Gradio-User": "mcp"}, {TOKEN_HEADER: exhibit.anna.owner})
    keys = ("session", "call", "event", "upload")
    for party, name in itertools.product(parties, (exhibit.names[key] for key in keys)):
        for path in (
            f"queue/data?session_hash={name}", f"queue/data?session_hash=x&session_hash={name}",
            f"heartbeat/{name}", f"stream/{name}/1/1/playlist.m3u8", f"stream/{name}/1/1/playlist-file",
            f"call/status/{name}", f"call/v2/status/{name}", f"upload_progress?upload_id={name}",
            f"heartbeat/%{ord(name[0]):x}{name[1:]}", f"queue/data?session%5fhash={name}",
            f"queue/data?session_hash={name}%00", f"deep_link?session_hash={name}",
        ):  # fmt: skip
            yield Forged("a session", "GET", f"{API}/{path}", party)
        for path, body in {
            "reset": {"event_id": name},
            "cancel": {"session_hash": name, "fn_index": 1, "event_id": exhibit.names["event"]},
            "component_server": {"session_hash": name, "component_id": 1, "fn_name": "ls", "data": [".."]},
            "run/status": {"session_hash": name, "data": [exhibit.anna.run_id]},
            f"stream/{name}": {"data": []},
            f"stream/{name}/close": {},
        }.items():
            yield Forged("a session", "POST", f"{API}/{path}", {**party, **_JSON}, _json(body))


def uploads(exhibit: Exhibit) -> Iterator[Forged]:
    """Yield uploads with odd file names that point outside the upload folder."""
    odd = (".", "..", "", f"{TAG}.csv", "\0.csv", "a\0/../b.csv", "x" * 5000, "con")
    encoded = (encode("/secret.txt") for encode in _ENCODINGS.values())
    names = [*secret_paths(exhibit), *encoded, *odd, f"../{exhibit.anna.owner}/reviews.csv"]
    for name, field_name in itertools.product(names, ("files", "upload_dir", _OTHER_FIELD)):
        quoted = name.replace('"', "%22")
        head = f'--b\r\nContent-Disposition: form-data; name="{field_name}"; filename="{quoted}"\r\n\r\n'
        body = head.encode() + b"text,label\r\nx,y\r\n--b--\r\n"
        headers = {**exhibit.mallory.headers, "Content-Type": "multipart/form-data; boundary=b"}
        yield Forged("an upload's name", "POST", f"{API}/upload", headers, body)
        if field_name == _OTHER_FIELD:
            yield Forged("an upload's name", "POST", f"{API}/process_recording", headers, body)


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()
