"""The Train tab: the form at the left, what is happening at the right."""

from typing import Any

import gradio as gr

from peft_core.certificate import read_certificate
from peft_core.charts import curve, curve_frame
from peft_core.errors import PeftCoreError, RunError
from peft_core.export import zip_of
from peft_core.pictures import certificate, lora_picture, message, result_card, running, working
from peft_core.runs import ENDED
from peft_core.ui.events import PRIVATE, download_by_click, plot, sentence, sentence_each
from peft_core.ui.form import DEFAULTS, Form, build_form, fill, settings_of, wire_form
from peft_core.ui.sidebar import run_choices
from peft_core.workbench import Workbench

INTRO = (
    '<div class="intro"><h3>What Train does</h3><p>The model stays frozen. Beside each chosen matrix W two '
    "thin ones, A and B, learn your labels together with a small head; what you keep is a file a "
    "hundredth of the model's size.</p></div>"
)
TICK = 1.0  # seconds between looks at the run folder


def build_train(page: gr.Blocks, workbench: Workbench, picker: gr.Radio, tabs: gr.Tabs) -> Form:
    """Layout first, wiring at the foot; the form's fields come back for the other tabs to fill."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=4, min_width=320):
            form, recipe, cards = build_form(workbench)
            strip = gr.HTML('<div class="cost skeleton">Counting parameters…</div>', elem_id="cost")
            with gr.Row(elem_classes="go"):
                go = gr.Button("Train", variant="primary", elem_id="train")
                resume = gr.Button("Continue", elem_id="continue", visible=False)
                stop = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
        with gr.Column(scale=6, min_width=320, elem_classes="happening"):
            intro = gr.HTML(INTRO)
            picture = gr.HTML(
                lora_picture(DEFAULTS.r, DEFAULTS.lora_alpha, "query", (384, 384)), elem_id="picture"
            )
            panel = gr.HTML(elem_id="panel", visible=False)
            with gr.Row(visible=False, elem_classes="curves") as curves:
                loss = gr.Plot(show_label=False, elem_id="loss", container=False)
                accuracy = gr.Plot(show_label=False, elem_id="accuracy", container=False)
            with gr.Row(visible=False, elem_classes="actions") as actions:
                try_it = gr.Button("Try it", elem_id="try-it", variant="primary")
                again = gr.Button("Use settings", elem_id="use-settings")
                merge = gr.Button("Merge", elem_id="merge")
                adapter_zip = gr.Button("Adapter zip", elem_id="get-adapter")
                merged_zip = gr.Button("Merged zip", elem_id="get-merged", interactive=False)
            proof = gr.HTML(elem_id="proof", visible=False)

    shown = [intro, picture, panel, curves, loss, accuracy, actions, merged_zip, proof, go, resume, stop]
    seen = gr.State("")
    timer = gr.Timer(TICK)

    def show(run_id: str | None, last: str) -> list[Any]:
        """The picked run as it stands on disk; nothing is sent if nothing has changed."""
        choices = run_choices(workbench)
        parts = _nothing_picked() if not run_id else _run_parts(workbench, run_id)
        signature = f"{run_id} {choices} {parts}"
        if signature == last:
            return [gr.skip()] * (len(shown) + 2)
        return [signature, gr.update(choices=choices), *parts]

    def train(values: dict) -> list[Any]:
        try:
            answer = workbench.train(settings_of(form, values))
        except PeftCoreError as error:
            return [gr.skip(), message(str(error))]
        if answer["waiting_for"]:
            gr.Info(f"{answer['waiting_for']} trains now; {answer['run_id']} is queued behind it.")
        return [gr.update(choices=run_choices(workbench), value=answer["run_id"]), gr.skip()]

    @sentence
    def stop_run(run_id: str) -> None:
        workbench.stop(run_id)

    @sentence
    def resume_run(run_id: str) -> None:
        workbench.resume(run_id)

    @sentence
    def take_settings(run_id: str) -> dict[Any, Any]:
        config = workbench.find(run_id).config()
        choices = workbench.worker.run("module_choices", config.model_name_or_path, config.revision)
        return fill(form, config, choices)

    @sentence_each
    def merge_run(run_id: str) -> Any:
        for report in workbench.merge(run_id):
            yield gr.update(visible=True, value=working(report.share, report.what)), ""

    def zip_path(kind: str) -> Any:
        return sentence(lambda run_id: str(zip_of(workbench.find(run_id), kind)))

    wire_form(page, workbench, form, recipe, cards, strip, picture)
    outputs = [seen, picker, *shown]
    gr.on([timer.tick, picker.change], show, [picker, seen], outputs, **PRIVATE)
    go.click(train, set(form.values()), [picker, strip], **PRIVATE)
    resume.click(resume_run, picker, None, **PRIVATE)
    stop.click(stop_run, picker, None, **PRIVATE)
    try_it.click(lambda: gr.update(selected="inference"), None, tabs, **PRIVATE)
    again.click(take_settings, picker, list(form.values()), **PRIVATE)
    merge.click(merge_run, picker, [proof, seen], **PRIVATE)
    for button, kind in ((adapter_zip, "adapter"), (merged_zip, "merged")):
        download_by_click(button, zip_path(kind), [picker], f"file-{kind}")
    return form


def _nothing_picked() -> list[Any]:
    """The page before a run: the picture of what is about to be trained."""
    shown, hidden, same = gr.update(visible=True), gr.update(visible=False), gr.skip()
    return [shown, shown, hidden, hidden, same, same, hidden, same, hidden, shown, hidden, hidden]


def _unreadable(sentence: str) -> list[Any]:
    """A run that is gone or has lost files: one sentence, and the way on."""
    shown, hidden, same = gr.update(visible=True), gr.update(visible=False), gr.skip()
    told = gr.update(visible=True, value=message(sentence))
    return [hidden, hidden, told, hidden, same, same, hidden, same, hidden, shown, hidden, hidden]


def _run_parts(workbench: Workbench, run_id: str) -> list[Any]:
    """Updates for everything at the right of the form, and its buttons."""
    try:
        run = workbench.find(run_id)
        description, metrics = workbench.describe(run), run.metrics()
    except RunError as error:
        return _unreadable(str(error))
    ended = description["status"] in ENDED
    frame, steps = curve_frame(metrics), description.get("max_steps") or 1
    held = read_certificate(run) if description["merged"] else None
    hidden = gr.update(visible=False)
    return [
        hidden,
        hidden,
        gr.update(visible=True, value=result_card(description) if ended else running(description)),
        gr.update(visible=not frame.empty),
        plot(curve(frame, "loss", steps)),
        plot(curve(frame, "accuracy", steps)),
        gr.update(visible=ended and description["has_adapter"]),
        gr.update(interactive=description["merged"]),
        gr.update(visible=held is not None, value=certificate(held.to_dict()) if held else ""),
        gr.update(visible=ended),
        gr.update(visible=description["can_continue"]),
        gr.update(visible=not ended, value="Stopping…" if run.stop_requested() else "Stop"),
    ]
