"""Small pieces of HTML and SVG: the picture of a method, the progress bar, the certificate."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.config import SETTINGS
from peft_core.data.uploads import dataset_label
from peft_core.errors import shorten
from peft_core.methods import METHODS
from peft_core.problems import REGRESSION
from peft_core.runs import SCHEDULED
from peft_core.waiting import about_duration

LABELS = 10  # named in a certificate


def quantity(number: float) -> str:
    """A count as people read it: 74,498 below a million, 22.8 M above."""
    return f"{number:,.0f}" if number < 1e6 else f"{number / 1e6:.1f} M"


def size(count: float) -> str:
    """Bytes as people read them: 301 kB, 1.2 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def cost(count: Mapping[str, Any]) -> str:
    """The cost strip: trainable of all, percent, file size, and the forecast of time and memory where
    there is one."""
    about = f" · ~{duration(count['seconds'])}" if count.get("seconds") else ""
    about += f" · {count['memory'] / 1e9:.1f} GB" if count.get("memory") else ""
    return (
        '<div class="cost" data-testid="cost">'
        f"<b>{count['trainable']:,}</b> of <b>{count['total']:,}</b>"
        f" · <b>{count['percent']:.4f} %</b>"
        f" · {size(count['file_bytes'])}{about}"
        f'<span class="quiet">trainable of all · adapter {count["adapter"]:,}'
        f" + head {count['head']:,}</span></div>"
    )


def message(text: str, kind: str = "error") -> str:
    """One sentence where it arose."""
    return f'<div class="message {kind}" role="alert">{html.escape(shorten(text))}</div>'


def method_words(settings: Mapping[str, Any]) -> str:
    """A method in a few words: its name, its rank and its matrices where it has them."""
    method = METHODS[settings["method"]]
    rank = f" r {settings['r']}" if "r" in method.settings else ""
    targets = f" · {' '.join(settings['target_modules'])}" if method.takes_target_modules else ""
    top = f" in the top {settings['top_layers']} layers" if targets and settings.get("top_layers") else ""
    return f"{method.label}{rank}{targets}{top}"


def method_picture(settings: Mapping[str, Any], module: str, shape: Sequence[int]) -> str:
    """What a method does to a matrix of `shape` (out, in): drawn for LoRA, in words for the others."""
    method = METHODS[settings["method"]]
    words = method.help
    if settings["method"] == "lora" and settings["use_dora"]:
        words = SETTINGS["use_dora"].help
    elif settings["method"] == "lora":
        words = (
            "The model stays frozen. Beside each chosen matrix W two thin ones, A and B, learn your labels "
            "together with a small head; what you keep is a file a hundredth of the model's size."
        )
        drawn = _drawn(settings, module, shape)
        return f'<div class="intro"><p>{words}</p></div>{drawn}'
    source = f'<p class="quiet">{html.escape(method.source)}</p>'
    return f'<div class="intro"><p data-testid="method-sentence">{html.escape(words)}</p>{source}</div>'


def _drawn(settings: Mapping[str, Any], module: str, shape: Sequence[int]) -> str:
    r, alpha = settings["r"], settings["lora_alpha"]
    scale = alpha / math.sqrt(r) if settings["use_rslora"] else alpha / r
    # PiSSA and OLoRA take the start of B A out of W, so that the sum is W when training begins
    taken_out = settings["init_lora_weights"] in ("pissa", "olora")
    return lora_picture(r, scale, module, shape, state="less B·A, frozen" if taken_out else "frozen")


def lora_picture(r: int, scale: float, module: str, shape: Sequence[int], *, state: str = "frozen") -> str:
    """W + scale · B A for a matrix of `shape` (out, in), B and A as thin as r makes them."""
    out, into = shape
    side, height = 150, max(60, min(150, 150 * out / max(into, 1)))
    thin = max(4.0, min(70.0, 150 * r / max(into, 1)))
    frozen, trained = out * into, r * (out + into)
    x_b = side + 120
    x_a, y_a = x_b + thin + 40, 30 + height / 2 - thin / 2
    name = html.escape(module)
    return f"""<figure class="lora" aria-label="LoRA at rank {r}">
<svg viewBox="0 0 540 250" role="img"><title>W plus {scale:.3g} times B times A</title>
<rect class="frozen" x="10" y="30" width="{side}" height="{height:.0f}" rx="4"/>
<text x="{10 + side / 2}" y="{30 + height / 2:.0f}" class="big">W</text>
<text x="{10 + side / 2}" y="18">{name} {out} × {into}, {state}</text>
<text x="{side + 60}" y="{30 + height / 2:.0f}" class="big">+ {scale:.3g} ·</text>
<rect class="trained" x="{x_b}" y="30" width="{thin:.1f}" height="{height:.0f}" rx="2"/>
<text x="{x_b + thin / 2:.1f}" y="18">B {out} × {r}</text>
<text x="{x_b + thin + 20:.1f}" y="{30 + height / 2:.0f}" class="big">·</text>
<rect class="trained" x="{x_a:.1f}" y="{y_a:.1f}" width="{side}" height="{thin:.1f}" rx="2"/>
<text x="{x_a + side / 2:.1f}" y="{y_a - 8:.1f}">A {r} × {into}</text>
<text x="10" y="215" class="left">{trained:,} numbers learn beside {frozen:,} that stay as they are:</text>
<text x="10" y="236" class="left">{100 * trained / frozen:.2g} % of this matrix.</text>
</svg></figure>"""


def bar(share: float) -> str:
    """A progress bar, `share` from 0 to 1."""
    return (
        f'<div class="bar" role="progressbar" aria-valuenow="{100 * share:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><i style="width:{100 * share:.1f}%"></i></div>'
    )


def working(share: float, what: str) -> str:
    """A task of the worker: how far it is and what it does."""
    return f'<div class="working">{bar(share)}<p class="quiet">{html.escape(what)}</p></div>'


def running(state: Mapping[str, Any]) -> str:
    """Progress of a run that waits or trains."""
    step, most = state.get("step") or 0, state.get("max_steps") or 0
    share = step / most if most else 0.0
    if state["status"] == SCHEDULED and not state.get("stage"):
        words = waiting(state)
    elif state.get("stage") == "training" and step:
        words = f"step {step:,} of {most:,} · {duration(state.get('eta') or 0)} left · {speed(state)}"
    else:
        words = f"{state.get('stage') or 'starting'}…"
    return (
        f'<div class="running"><h3>{html.escape(state["run_id"])}</h3>'
        f"{bar(share)}"
        f'<p data-testid="progress">{html.escape(words)}</p>{speedup_failure(state)}'
        f"{''.join(message(note, 'note') for note in state.get('notes') or ())}</div>"
    )


def waiting(state: Mapping[str, Any]) -> str:
    """Where a run waits in the queue, and about how long."""
    place, seconds = state.get("queue_place"), state.get("queue_seconds")
    if place is None:
        return "Waiting for the run before it"
    about = "" if seconds is None else f", {about_duration(seconds)}"
    return f"Waiting: {'next' if place == 1 else _ordinal(place)} in the queue{about}"


def _ordinal(number: int) -> str:
    last = 0 if number // 10 % 10 == 1 else number % 10
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"


def speed(told: Mapping[str, Any]) -> str:
    """Tokens a second of a run, and what stands behind them where that is not the plain step."""
    words = [f"{told.get('tokens_per_second') or 0:,.0f} tokens/s"]
    faster = told.get("speedups") or {}
    if faster.get("failed_at") is not None:
        faster = {}  # from that step on every one is plain
    if faster.get("dtype") == "bfloat16":
        words.append("bfloat16")
    if faster.get("lower_layers"):
        words.append(f"the {faster['lower_layers']} lowest layers run once")
    if (told.get("batch_parts") or 1) > 1:
        words.append(f"memory is short, so each batch in {told['batch_parts']} parts")
    if told.get("gradient_checkpointing"):
        words.append("memory is short, so layers run again in the backward pass")
    return " · ".join(words)


def speedup_failure(record: Mapping[str, Any]) -> str:
    """A note on a run one of whose steps failed in a faster form; empty for any other."""
    speedups = record.get("speedups") or {}
    if speedups.get("failed_at") is None:
        return ""
    return message(
        f"After step {speedups['failed_at']:,} a step failed in its faster form ({speedups['failure']}). It "
        "was repeated in the plain form, and every later step is plain: slower, with the same result.",
        "note",
    )


def settings_line(settings: Mapping[str, Any] | None) -> str:
    """The settings that tell one run from another."""
    if settings is None:
        return ""
    words = (
        f"{settings['model_name_or_path']} on {dataset_label(settings['dataset_name'])} · "
        f"{method_words(settings)} · rate {settings['learning_rate']:g} · "
        f"{settings['num_train_epochs']:g} × up to {settings['max_train_samples']:,} rows · "
        f"seed {settings['seed']}"
    )
    return f'<p class="quiet">{html.escape(words)}</p>'


def certificate(held: Mapping[str, Any]) -> str:
    """What the certificate compared and found."""
    worst = max(held["max_logit_diff_merged"], held["max_logit_diff_reloaded"])
    word = "holds" if held["holds"] else "does not hold: " + "; ".join(held["problems"])
    compared = f"largest logit difference {worst:.1e} (at most {held['tolerance']:.2g})"
    found = f"{compared} · {held['label_flips']} labels flipped"
    named, left = held["labels"][:LABELS], len(held["labels"]) - LABELS
    labels = f" · labels {html.escape(', '.join(named))}" + (f" and {left:,} more" if left > 0 else "")
    if held.get("problem_type") == REGRESSION:
        found, labels = compared.replace("logit ", ""), ""
    return (
        f'<div class="certificate" data-testid="certificate"><h4>Merge certificate {html.escape(word)}</h4>'
        f"<p>{held['rows']:,} evaluation rows · {found} · "
        f"head {held['head_sha256'][:12]}{labels}</p>{_quantised(held)}</div>"
    )


def _quantised(held: Mapping[str, Any]) -> str:
    """What training over a quantised base had changed."""
    if held.get("max_logit_diff_quantised") is None:
        return ""
    return (
        f"<p>Trained over a base in {held['trained_in_bits']} bits, merged into the original weights: "
        f"they move a logit by up to {held['max_logit_diff_quantised']:.2g} and change "
        f"{held['label_flips_quantised']:,} of {held['rows']:,} labels.</p>"
    )
