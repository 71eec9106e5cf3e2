"""Two visitors of a public app, as their browsers ask it, and what the app's processes hold meanwhile."""

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
    """The app answered with an error: one sentence of its own, or nothing for a bug."""


class Visitor:
    """Whoever asks the app, with a token and a session of a page of their own."""

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
        """What a named endpoint answers. Raises Refused."""
        place = f"{API}/call/{name}"
        event = self._post(place, json={"data": list(values)}).json()["event_id"]
        answer = self._http.get(f"{place}/{event}").text
        kind, data = answer.rsplit("event: ", 1)[1].split("\n", 1)
        content = json.loads(data.removeprefix("data: ").strip() or "null")
        if kind.strip() != "complete":
            raise Refused((content or {}).get("error") or "")
        return content[0]

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        """A file as the page hands it to a handler. Raises Refused."""
        answer = self._post(f"{API}/upload", files={"files": (name, data)})
        if answer.status_code != 200:
            raise Refused(answer.text[:300])
        (path,) = answer.json()
        return {"path": path, "orig_name": name, "size": len(data), "meta": {"_type": "gradio.FileData"}}

    def event(self, handler: dict[str, Any], values: list[Any]) -> dict[int, Any]:
        """What a handler of the page answers in the end, by component. Raises Refused."""
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
                for component, value in zip(handler["outputs"], message["output"]["data"], strict=False):
                    _update(answers, component, value)
                if message["msg"] == "process_completed":
                    return answers
        raise Refused("the app ended its answer before it was whole")

    def handler(self, *inputs: int, answers: int) -> dict[str, Any]:
        """The handler of the page that takes these components, few others, and answers in another one."""
        fitting = (
            event
            for event in self._events
            if event["backend_fn"] and set(inputs) <= set(event["inputs"]) and answers in event["outputs"]
        )
        return min(fitting, key=lambda event: len(event["inputs"]))

    def load_runs(self) -> None:
        """List the runs in the page, which takes no others."""
        runs = self.ids["runs"]
        loading = (event for event in self._events if _is_load(event))
        self.event(next(event for event in loading if event["outputs"][:1] == [runs]), [])

    def values_for(self, handler: dict[str, Any], dataset_name: str) -> list[Any]:
        """What an open page that names a data set sends to a handler: else the values it begins with."""
        names = {self.ids["dataset_name"]: dataset_name}
        return [names.get(component, self._values[component]) for component in handler["inputs"]]

    def train(self, settings: dict[str, Any], seconds: float) -> str:
        """A run of these settings that has ended; it is stopped if it takes too long. Raises Refused."""
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
        """Send it, again if the app asks to wait."""
        while (answer := self._http.post(place, **content)).status_code == 429:
            time.sleep(float(answer.headers.get("retry-after", 1)))
        return answer


def _is_load(event: dict[str, Any]) -> bool:
    return any(trigger == "load" for _, trigger in event["targets"])


def _is_nameless_checkbox(part: dict[str, Any]) -> bool:
    """Whether this is the one that says that the card of the data is open."""
    return part["type"] == "checkbox" and not part["props"].get("elem_id")


def _update(answers: dict[int, Any], component: int, value: Any) -> None:
    """Keep what a message says of a component: a value, a change of the last one, or that it stays."""
    if isinstance(value, list) and value and isinstance(value[0], list) and len(value[0]) == 3:
        value = next((new for _, _, new in value if isinstance(new, str)), None)  # a handler yields changes
    if value is not None and value != {"__type__": "update"}:
        answers[component] = value


def words_of(page: Any) -> str:
    """The words of a piece of the page, which may be an update of it."""
    value = page.get("value", "") if isinstance(page, dict) else page
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", str(value or ""))).split())


@dataclass
class Clicks:
    """What somebody asks once a second while another one uploads: seconds of each, and what failed."""

    visitor: Visitor
    run_id: str
    seconds: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    during: str = ""  # what the other one does now

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

    def once(self, number: int) -> None:
        """Ask one thing."""
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
    def going_on(self) -> Iterator["Clicks"]:
        """Ask until the block ends."""
        for number in range(4):
            self.once(number)
        self.seconds.clear()  # the first ones load a model
        with _repeat(self.once, _CLICK_EVERY):
            yield self


@dataclass
class Memory:
    """The most bytes that the app and its workers held: together, and the files worker alone.

    Shared pages are divided among those that share them (PSS). Trainings are processes of their own, which a
    public demo bounds otherwise; they do not count.
    """

    app: psutil.Process
    together: int = 0
    files_worker: int = 0
    alone: int = 0  # the app's own process

    def sample(self, number: int = 0) -> None:
        """Look once."""
        total = 0
        for process in [self.app, *self.app.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                if any("peft_core.training.entry" in word for word in process.cmdline()):
                    continue
                size = process.memory_full_info().pss
                total += size
                if process == self.app:
                    self.alone = max(self.alone, size)
                elif process.rlimit(psutil.RLIMIT_AS)[0] != psutil.RLIM_INFINITY:
                    self.files_worker = max(self.files_worker, size)
        self.together = max(self.together, total)

    @contextlib.contextmanager
    def going_on(self) -> Iterator["Memory"]:
        """Look twice a second until the block ends."""
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
