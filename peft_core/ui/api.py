"""The named API endpoints, for gradio_client and MCP; each takes and returns JSON."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from peft_core.service.downloads import translate_os_errors
from peft_core.service.workbench import Workbench
from peft_core.ui.downloads import download_cache
from peft_core.ui.events import show_errors


class Endpoints:
    """The functions behind /train, /status, /stop, /runs, /count, /merge, /predict, /download,
    /delete and /restore.

    MCP clients read the docstrings.
    """

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench

    def train(self, settings: dict) -> dict:
        """Start fine-tuning with these settings, or queue it behind the run that is training.

        Args:
            settings: names and values of TrainConfig, such as {"r": 8, "learning_rate": 0.002}; missing ones
                take their defaults, so {} trains the embedded model on the embedded reviews.

        Returns:
            The new run's run_id, and the run it waits for, if any.
        """
        return self._workbench.train(settings)

    def status(self, run_id: str) -> dict:
        """Return the state of a run: its status, step, settings, and its result once there is one.

        Args:
            run_id: a run's id, from /train or /runs.
        """
        return self._workbench.status(run_id)

    def stop(self, run_id: str) -> dict:
        """Stop a run; a run that is training keeps its adapter so far.

        Args:
            run_id: a run's id, from /train or /runs.
        """
        return self._workbench.stop(run_id)

    def delete(self, run_id: str) -> dict:
        """Delete a run that has ended, with its adapter and all its files. /restore undoes it for an hour.

        Args:
            run_id: a run's id, from /runs.
        """
        return self._workbench.delete(run_id)

    def restore(self, run_id: str) -> dict:
        """Bring back a run that was deleted within the last hour.

        Args:
            run_id: the run's id.
        """
        return self._workbench.restore(run_id)

    def runs(self) -> list:
        """Return all runs, newest first, each as /status returns it."""
        return [self._workbench.describe(run) for run in self._workbench.list_runs()]

    def count(self, settings: dict) -> dict:
        """Return exact parameter counts of these settings, from the model's configuration alone.

        Args:
            settings: names and values of TrainConfig; every method is supported.
        """
        return self._workbench.count(settings)

    def merge(self, run_id: str) -> dict:
        """Merge a run's adapter into its base model and return the certificate that proves it.

        Args:
            run_id: the id of a run that has an adapter.
        """
        *_, last = self._workbench.merge(run_id)
        return last.result

    def predict(self, text: str, run_id: str, variant: str = "adapter", text_pair: str = "") -> dict:
        """Classify a text with a run's model: its label, the probability of each label, and the milliseconds.

        Multi-label runs add `labels`, regression runs add `value`.

        Args:
            text: what to classify.
            run_id: the id of a run that has an adapter.
            variant: base, adapter or merged.
            text_pair: the second text, for a run that was trained on pairs.
        """
        return self._workbench.predict(text, run_id, variant, text_pair)

    def download(self, run_id: str, kind: str) -> gr.FileData:
        """Return one of a run's artifacts as a zip file.

        Args:
            run_id: a run's id, from /train or /runs.
            kind: adapter, merged, onnx, embeddings, page, or script (a program that trains the same run).
        """
        with translate_os_errors(f"The {kind} of {run_id!r}"):
            path = download_cache().publish(self._workbench.archive(run_id, kind))
        return gr.FileData(path=path, orig_name=Path(path).name)


def build_api(workbench: Workbench) -> None:
    """Register the endpoints under their plain names."""
    methods = Endpoints(workbench)
    endpoints: list[Callable[..., Any]] = [
        methods.train, methods.status, methods.stop, methods.runs, methods.count, methods.merge,
        methods.predict, methods.download, methods.delete, methods.restore,
    ]  # fmt: skip
    for endpoint in endpoints:
        api(show_errors(endpoint), api_name=endpoint.__name__)
