"""HTML and SVG components: formatted numbers, messages, progress, method pictures, merge certificate."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.config import SETTINGS
from peft_core.data.uploads import dataset_label
from peft_core.errors import shorten
from peft_core.methods.registry import METHODS
from peft_core.problem_types import REGRESSION
from peft_core.runs import SCHEDULED
from peft_core.runs.queue import describe_duration

MAX_LABELS = 10  # labels listed in a certificate


def quantity(number: float) -> str:
    """Format a count: 74,498 below a million, 22.8 M above."""
    return f"{number:,.0f}" if number < 1e6 else f"{number / 1e6:.1f} M"


def size(count: float) -> str:
    """Format a number of bytes: 301 kB, 1.2 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def cost(count: Mapping[str, Any]) -> str:
    """Return the cost strip: trainable and all parameters, file size, and the forecast if there is one."""
    forecast = f" · ~{duration(count['seconds'])}" if count.get("seconds") else ""
    forecast += f" · {count['memory'] / 1e9:.1f} GB" if count.get("memory") else ""
    return (
        '<div class="cost" data-testid="cost">'
        f"<b>{count['trainable']:,}</b> of <b>{count['total']:,}</b>"
        f" · <b>{count['percent']:.4f} %</b>"
        f" · {size(count['file_bytes'])}{forecast}"
        f'<span class="quiet">trainable of all · adapter {count["adapter"]:,}'
        f" + head {count['head']:,}</span></div>"
    )


def message(text: str, kind: str = "error") -> str:
    """Return an alert with a message; `kind` is its CSS class, `error` or `note`."""
    return f'<div class="message {kind}" role="alert">{html.escape(shorten(text))}</div>'


def describe_method(settings: Mapping[str, Any]) -> str:
    """Return a method's name, with its rank, target modules and layers if it has them."""
    method = METHODS[settings["method"]]
    rank = f" r {settings['r']}" if "r" in method.settings else ""
    targets = f" · {' '.join(settings['target_modules'])}" if method.takes_target_modules else ""
    top = f" in the top {settings['top_layers']} layers" if targets and settings.get("top_layers") else ""
    return f"{method.label}{rank}{targets}{top}"


def method_picture(settings: Mapping[str, Any], module: str, shape: Sequence[int]) -> str:
    """Return a method's description; for LoRA with a picture for a matrix of `shape` (out, in)."""
    method = METHODS[settings["method"]]
    description = method.help
    if settings["method"] == "lora" and settings["use_dora"]:
        description = SETTINGS["use_dora"].help
    elif settings["method"] == "lora":
        description = (
            "The model stays frozen. For each target matrix W, two thin matrices A and B are trained, "
            "together with a small head. The saved file is about a hundredth of the model's size."
        )
        picture = _lora_picture_of(settings, module, shape)
        return f'<div class="intro"><p>{description}</p></div>{picture}'
    source = f'<p class="quiet">{html.escape(method.source)}</p>'
    return f'<div class="intro"><p data-testid="method-sentence">{html.escape(description)}</p>{source}</div>'


def _lora_picture_of(settings: Mapping[str, Any], module: str, shape: Sequence[int]) -> str:
    r, alpha = settings["r"], settings["lora_alpha"]
    scale = alpha / math.sqrt(r) if settings["use_rslora"] else alpha / r
    # PiSSA and OLoRA subtract the initial B A from W, so that the sum equals W when training starts
    is_subtracted = settings["init_lora_weights"] in ("pissa", "olora")
    return lora_picture(r, scale, module, shape, state="minus B·A, frozen" if is_subtracted else "frozen")


def lora_picture(r: int, scale: float, module: str, shape: Sequence[int], *, state: str = "frozen") -> str:
    """Return a picture of W + scale · B A for a matrix of `shape` (out, in), drawn to scale for rank r."""
    out, in_features = shape
    side, height = 150, max(60, min(150, 150 * out / max(in_features, 1)))
    thin = max(4.0, min(70.0, 150 * r / max(in_features, 1)))
    frozen, trained = out * in_features, r * (out + in_features)
    x_b = side + 120
    x_a, y_a = x_b + thin + 40, 30 + height / 2 - thin / 2
    name = html.escape(module)
    return f"""<figure class="lora" aria-label="LoRA at rank {r}">
<svg viewBox="0 0 540 250" role="img"><title>W plus {scale:.3g} times B times A</title>
<rect class="frozen" x="10" y="30" width="{side}" height="{height:.0f}" rx="4"/>
<text x="{10 + side / 2}" y="{30 + height / 2:.0f}" class="big">W</text>
<text x="{10 + side / 2}" y="18">{name} {out} × {in_features}, {state}</text>
<text x="{side + 60}" y="{30 + height / 2:.0f}" class="big">+ {scale:.3g} ·</text>
<rect class="trained" x="{x_b}" y="30" width="{thin:.1f}" height="{height:.0f}" rx="2"/>
<text x="{x_b + thin / 2:.1f}" y="18">B {out} × {r}</text>
<text x="{x_b + thin + 20:.1f}" y="{30 + height / 2:.0f}" class="big">·</text>
<rect class="trained" x="{x_a:.1f}" y="{y_a:.1f}" width="{side}" height="{thin:.1f}" rx="2"/>
<text x="{x_a + side / 2:.1f}" y="{y_a - 8:.1f}">A {r} × {in_features}</text>
<text x="10" y="215" class="left">{trained:,} trained parameters beside {frozen:,} frozen ones:</text>
<text x="10" y="236" class="left">{100 * trained / frozen:.2g} % of this matrix.</text>
</svg></figure>"""


def bar(share: float) -> str:
    """Return a progress bar; `share` is from 0 to 1."""
    return (
        f'<div class="bar" role="progressbar" aria-valuenow="{100 * share:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><i style="width:{100 * share:.1f}%"></i></div>'
    )


def task_progress(share: float, stage: str) -> str:
    """Return the progress of a task in the worker process."""
    return f'<div class="working">{bar(share)}<p class="quiet">{html.escape(stage)}</p></div>'


def run_progress(state: Mapping[str, Any]) -> str:
    """Return the progress of a run that waits in the queue or trains."""
    step, max_steps = state.get("step") or 0, state.get("max_steps") or 0
    share = step / max_steps if max_steps else 0.0
    if state["status"] == SCHEDULED and not state.get("stage"):
        text = queue_position(state)
    elif state.get("stage") == "training" and step:
        text = f"step {step:,} of {max_steps:,} · {duration(state.get('eta') or 0)} left · {speed(state)}"
    else:
        text = f"{state.get('stage') or 'starting'}…"
    return (
        f'<div class="running"><h3>{html.escape(state["run_id"])}</h3>'
        f"{bar(share)}"
        f'<p data-testid="progress">{html.escape(text)}</p>{speedup_failure(state)}'
        f"{''.join(message(note, 'note') for note in state.get('notes') or ())}</div>"
    )


def queue_position(state: Mapping[str, Any]) -> str:
    """Return a run's position in the queue and the expected waiting time."""
    position, seconds = state.get("queue_place"), state.get("queue_seconds")
    if position is None:
        return "Waiting for the run before it"
    forecast = "" if seconds is None else f", {describe_duration(seconds)}"
    return f"Waiting: {'next' if position == 1 else _ordinal(position)} in the queue{forecast}"


def _ordinal(number: int) -> str:
    last_digit = 0 if number // 10 % 10 == 1 else number % 10  # 11, 12 and 13 take "th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last_digit, 'th') }"


def speed(record: Mapping[str, Any]) -> str:
    """Return a run's tokens per second, and the optimizations and memory savings in use."""
    parts = [f"{record.get('tokens_per_second') or 0:,.0f} tokens/s"]
    speedups = record.get("speedups") or {}
    if speedups.get("failed_at") is not None:
        speedups = {}  # training continues without them after a failure
    if speedups.get("dtype") == "bfloat16":
        parts.append("bfloat16")
    if speedups.get("lower_layers"):
        parts.append(f"the {speedups['lower_layers']} lowest layers run once")
    if (record.get("batch_parts") or 1) > 1:
        parts.append(f"memory is short, so each batch in {record['batch_parts']} parts")
    if record.get("gradient_checkpointing"):
        parts.append("memory is short, so layers run again in the backward pass")
    return " · ".join(parts)


def speedup_failure(record: Mapping[str, Any]) -> str:
    """Return a note if a training optimization of the run failed; empty otherwise."""
    speedups = record.get("speedups") or {}
    if speedups.get("failed_at") is None:
        return ""
    return message(
        f"After step {speedups['failed_at']:,} a step failed in its faster form ({speedups['failure']}). It "
        "was repeated in the plain form, and every later step is plain: slower, with the same result.",
        "note",
    )


def settings_line(settings: Mapping[str, Any] | None) -> str:
    """Return the settings that distinguish runs: model, dataset, method and main training settings."""
    if settings is None:
        return ""
    text = (
        f"{settings['model_name_or_path']} on {dataset_label(settings['dataset_name'])} · "
        f"{describe_method(settings)} · rate {settings['learning_rate']:g} · "
        f"{settings['num_train_epochs']:g} × up to {settings['max_train_samples']:,} rows · "
        f"seed {settings['seed']}"
    )
    return f'<p class="quiet">{html.escape(text)}</p>'


def certificate(fields: Mapping[str, Any]) -> str:
    """Return a merge certificate, given as the JSON types of `MergeCertificate`."""
    largest = max(fields["max_logit_diff_merged"], fields["max_logit_diff_reloaded"])
    verdict = "holds" if fields["holds"] else "does not hold: " + "; ".join(fields["problems"])
    difference = f"largest logit difference {largest:.1e} (at most {fields['tolerance']:.2g})"
    comparison = f"{difference} · {fields['label_flips']} labels flipped"
    names, rest = fields["labels"][:MAX_LABELS], len(fields["labels"]) - MAX_LABELS
    labels = f" · labels {html.escape(', '.join(names))}" + (f" and {rest:,} more" if rest > 0 else "")
    if fields.get("problem_type") == REGRESSION:
        comparison, labels = difference.replace("logit ", ""), ""
    return (
        f'<div class="certificate" data-testid="certificate"><h4>Merge certificate '
        f"{html.escape(verdict)}</h4>"
        f"<p>{fields['rows']:,} evaluation rows · {comparison} · "
        f"head {fields['head_sha256'][:12]}{labels}</p>{_quantized_base(fields)}</div>"
    )


def _quantized_base(fields: Mapping[str, Any]) -> str:
    """Return the effect of merging into the original weights after training on a quantized base."""
    if fields.get("max_logit_diff_quantised") is None:
        return ""
    return (
        f"<p>Trained on a base model in {fields['trained_in_bits']} bits, merged into the original weights: "
        f"they move a logit by up to {fields['max_logit_diff_quantised']:.2g} and change "
        f"{fields['label_flips_quantised']:,} of {fields['rows']:,} labels.</p>"
    )
