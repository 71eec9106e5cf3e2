"""The requests that the page in a browser sends to the app, without a browser."""

import json
import secrets
from typing import Any

import httpx


class OpenPage:
    """A page that shows one run, as the app sees it: a session, polls and events."""

    def __init__(self, client: httpx.Client, run_id: str) -> None:
        self.client, self.run_id, self.session = client, run_id, secrets.token_hex(6)
        events = client.get("/config").json()["dependencies"]
        self.tick = next(event for event in events if _is_triggered_by(event, "tick"))
        self.show = next(
            event for event in events if event["targets"] == [[self.tick["inputs"][1], "change"]]
        )
        picker = self.tick["inputs"][:1]
        loads = (event for event in events if _is_triggered_by(event, "load"))
        self.event(next(event for event in loads if event["outputs"][:1] == picker), [])
        self.run_version = ""

    def poll(self) -> bool:
        """Ask for the run's version, as the page does each second, and for the run if the version is new.

        Returns:
            Whether anything but the run's progress has changed.
        """
        body = self._body(self.tick, [self.run_id, self.run_version, None])
        response = self.client.post("/gradio_api/run/predict", json=body)
        version = response.raise_for_status().json()["data"][0]
        changed = isinstance(version, str) and version != self.run_version  # else an update that skips it
        if changed:
            self.run_version = version
            self.event(self.show, [self.run_id])
        return changed

    def event(self, event: dict[str, Any], data: list[Any]) -> dict[str, Any]:
        """Return the output of an event of the page, from the queue."""
        self.client.post("/gradio_api/queue/join", json=self._body(event, data))
        with self.client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as response:
            for line in response.iter_lines():
                message = json.loads(line[5:] or "{}") if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(message["output"]["error"])
                    return message["output"]
        raise RuntimeError("the app ended its response before the event was complete")

    def _body(self, event: dict[str, Any], data: list[Any]) -> dict[str, Any]:
        target = event["targets"][0][0]
        return {"fn_index": event["id"], "trigger_id": target, "data": data, "session_hash": self.session}


def _is_triggered_by(event: dict[str, Any], trigger: str) -> bool:
    return any(name == trigger for _, name in event["targets"])
