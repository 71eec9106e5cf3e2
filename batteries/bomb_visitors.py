"""Visitors of a public app, as their browsers send requests, and the memory of the app's processes."""

import contextlib
import itertools
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import httpx
import psutil

from peft_core.access.visitors import TOKEN_HEADER, new_token

API = "/gradio_api"
SMALL_RUN = {"max_train_samples": 64, "max_eval_samples": 16, "num_train_epochs": 1}
_CLICK_EVERY, _SAMPLE_EVERY = 1.0, 0.5  # seconds
_ENDED = ("FINISHED", "FAILED", "KILLED")


class Refused(Exception):
    """The app answered with an error; the message is empty for a bug."""


class Visitor:
    """A visitor with a token and the session of a page."""

    def __init__(self, url: str) -> None:
        self.token = new_token()
        self._http = httpx.Client(base_url=url, timeout=400, headers={TOKEN_HEADER: self.token})
        self._session = secrets.token_hex(6)
        config = self._http.get("/config").raise_for_status().json()
        self._events = config["dependencies"]
        self.ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self._values = {
            part["id"]: True if _is_nameless_checkbox(part) else part["props"].get("value")
            for part in config["components"]
        }

    def ask(self, name: str, *values: Any) -> Any:
        """Call a named endpoint and return its answer. Raises Refused."""
        place = f"{API}/call/{name}"
        event = self._post(place, json={"data": list(values)}).json()["event_id"]
        answer = self._http.get(f"{place}/{event}").text
        kind, data = answer.rsplit("event: ", 1)[1].split("\n", 1)
        content = json.loads(data.removeprefix("data: ").strip() or "null")
        if kind.strip() != "complete":
            raise Refused((content or {}).get("error") or "")
        return content[0]

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        """Upload a file and return it as a handler's input. Raises Refused."""
        answer = self._post(f"{API}/upload", files={"files": (name, data)})
        if answer.status_code != 200:
            raise Refused(answer.text[:300])
        (path,) = answer.json()
        return {"path": path, "orig_name": name, "size": len(data), "meta": {"_type": "gradio.FileData"}}

    def event(self, handler: dict[str, Any], values: list[Any]) -> dict[int, Any]:
        """Run a handler of the page and return its final outputs by component. Raises Refused."""
        question = {"fn_index": handler["id"], "data": values, "session_hash": self._session}
        self._post(f"{API}/queue/join", json=question).raise_for_status()
        answers: dict[int, Any] = {}
        with self._http.stream("GET", f"{API}/queue/data", params={"session_hash": self._session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line[5:] or "{}") if line.startswith("data:") else {}
                if message.get("msg") not in ("process_generating", "process_completed"):
                    continue
                if not message["success"]:
                    raise Refused(message["output"].get("error") or "")
                for component, content in zip(handler["outputs"], message["output"]["data"], strict=False):
                    _update(answers, component, content)
                if message["msg"] == "process_completed":
                    return answers
        raise Refused("the app ended its answer before it was whole")

    def handler(self, *inputs: int, answers: int) -> dict[str, Any]:
        """Return the handler with the fewest inputs that has these inputs and this output."""
        fitting = (
            event
            for event in self._events
            if event["backend_fn"] and set(inputs) <= set(event["inputs"]) and answers in event["outputs"]
        )
        return min(fitting, key=lambda event: len(event["inputs"]))

    def load_runs(self) -> None:
        """Load the list of runs into the page, which accepts no other run ids."""
        runs = self.ids["runs"]
        loading = (event for event in self._events if _is_load(event))
        self.event(next(event for event in loading if event["outputs"][:1] == [runs]), [])

    def values_for(self, handler: dict[str, Any], dataset_name: str) -> list[Any]:
        """Return the inputs of a handler on an open page: a data set and otherwise initial values."""
        names = {self.ids["dataset_name"]: dataset_name}
        return [names.get(component, self._values[component]) for component in handler["inputs"]]

    def train(self, settings: dict[str, Any], seconds: float) -> str:
        """Train a run to its end and return its id; stop it after so many seconds. Raises Refused."""
        run_id, end = self.ask("train", settings)["run_id"], time.monotonic() + seconds
        while self.ask("status", run_id)["status"] not in _ENDED:
            if time.monotonic() > end:
                self.ask("stop", run_id)
                raise Refused(f"the training took over {seconds:.0f} s and was stopped")
            time.sleep(0.5)
        return run_id

    def close(self) -> None:
        self._http.close()

    def _post(self, place: str, **content: Any) -> httpx.Response:
        """Send a request, again if the app asks to wait."""
        while (answer := self._http.post(place, **content)).status_code == 429:
            time.sleep(float(answer.headers.get("retry-after", 1)))
        return answer


def _is_load(event: dict[str, Any]) -> bool:
    return any(trigger == "load" for _, trigger in event["targets"])


def _is_nameless_checkbox(part: dict[str, Any]) -> bool:
    """Whether this is the checkbox for an open data card."""
    return part["type"] == "checkbox" and not part["props"].get("elem_id")


def _update(answers: dict[int, Any], component: int, message_value: Any) -> None:
    """Apply a message to the outputs: a value, a change of the last one, or no change."""
    if (
        isinstance(message_value, list)
        and message_value
        and isinstance(message_value[0], list)
        and len(message_value[0]) == 3
    ):
        message_value = next(
            (new for _, _, new in message_value if isinstance(new, str)), None
        )  # a diff of a streaming handler
    if message_value is not None and message_value != {"__type__": "update"}:
        answers[component] = message_value


def visible_text(page: Any) -> str:
    """Return the visible text of a part of the page, which may be an update."""
    html = page.get("value", "") if isinstance(page, dict) else page
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", str(html or ""))).split())


@dataclass
class Clicks:
    """Clicks once a second while another visitor uploads: seconds of each, and failures."""

    visitor: Visitor
    run_id: str
    seconds: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    during: str = ""  # what the other visitor does now

    def _ask(self, number: int) -> str:
        questions: dict[str, Callable[[], Any]] = {
            "count": lambda: self.visitor.ask("count", {"r": 4 + number % 60}),
            "status": lambda: self.visitor.ask("status", self.run_id),
            "runs": lambda: self.visitor.ask("runs"),
            "predict": lambda: self.visitor.ask("predict", "Good food.", self.run_id, "adapter", ""),
        }
        name = list(questions)[number % len(questions)]
        questions[name]()
        return name

    def click(self, number: int) -> None:
        """Send one request."""
        during, start = self.during, time.monotonic()
        try:
            name = self._ask(number)
        except Exception as error:
            self.failures.append(
                f"a click during {during} failed: {type(error).__name__}: {str(error)[:200]}"
            )
            return
        self.seconds.append((time.monotonic() - start, f"{name} during {during}"))

    @contextlib.contextmanager
    def running(self) -> Iterator["Clicks"]:
        """Click until the block ends."""
        for number in range(4):
            self.click(number)
        self.seconds.clear()  # the first requests load a model
        with _repeat(self.click, _CLICK_EVERY):
            yield self


@dataclass
class Memory:
    """Peak memory of the app and its workers: in total, of the files worker, and of the app.

    Shared pages are divided among the processes that share them (PSS). Training processes do not count: a
    public demo limits them separately.
    """

    app: psutil.Process
    total: int = 0
    files_worker: int = 0
    app_alone: int = 0  # the app's own process

    def sample(self, number: int = 0) -> None:
        """Take one sample."""
        total = 0
        for process in [self.app, *self.app.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                if any("peft_core.training.entry" in word for word in process.cmdline()):
                    continue
                size = process.memory_full_info().pss
                total += size
                if process == self.app:
                    self.app_alone = max(self.app_alone, size)
                elif process.rlimit(psutil.RLIMIT_AS)[0] != psutil.RLIM_INFINITY:
                    self.files_worker = max(self.files_worker, size)
        self.total = max(self.total, total)

    @contextlib.contextmanager
    def running(self) -> Iterator["Memory"]:
        """Sample twice a second until the block ends."""
        with _repeat(self.sample, _SAMPLE_EVERY):
            yield self


@contextlib.contextmanager
def _repeat(task: Callable[[int], None], seconds: float) -> Iterator[None]:
    ended = threading.Event()

    def work() -> None:
        for number in itertools.count():
            task(number)
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
