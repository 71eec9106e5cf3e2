"""The named endpoints, for gradio_client and MCP: each takes and returns JSON."""

import gradio as gr

from peft_core.ui.events import sentence
from peft_core.workbench import Workbench


def build_api(workbench: Workbench) -> None:
    """Register /train, /status, /stop, /runs, /count, /merge and /predict."""

    @sentence
    def train(settings: dict) -> dict:
        """Start fine-tuning with these settings, or queue it behind the run that trains now.

        Args:
            settings: names and values of TrainConfig, such as {"r": 8, "learning_rate": 0.002}; missing ones
                take their defaults, so {} trains the embedded model on the embedded reviews.

        Returns:
            The new run's run_id, and the run it waits for, if any.
        """
        return workbench.train(settings)

    @sentence
    def status(run_id: str) -> dict:
        """How a run stands: its status, step, settings, and its result once there is one.

        Args:
            run_id: a run's id, from /train or /runs.
        """
        return workbench.status(run_id)

    @sentence
    def stop(run_id: str) -> dict:
        """Stop a run; one that trains keeps its adapter so far.

        Args:
            run_id: a run's id, from /train or /runs.
        """
        return workbench.stop(run_id)

    @sentence
    def runs() -> list:
        """All runs, the newest first, each as /status tells it."""
        return [workbench.describe(run) for run in workbench.list_runs()]

    @sentence
    def count(settings: dict) -> dict:
        """Exact parameter counts of these settings, from the model's configuration alone.

        Args:
            settings: names and values of TrainConfig; method may be lora, head_only or full.
        """
        return workbench.count(settings)

    @sentence
    def merge(run_id: str) -> dict:
        """Merge a run's adapter into its base model and return the certificate that proves it.

        Args:
            run_id: the id of a run that has an adapter.
        """
        *_, last = workbench.merge(run_id)
        return last.result

    @sentence
    def predict(text: str, run_id: str, variant: str = "adapter") -> dict:
        """Classify a text with a run's model: its label, the probability of each label, and the milliseconds.

        Args:
            text: what to classify.
            run_id: the id of a run that has an adapter.
            variant: base, adapter or merged.
        """
        return workbench.predict(text, run_id, variant)

    for endpoint in (train, status, stop, runs, count, merge, predict):
        gr.api(endpoint, api_name=endpoint.__name__)
