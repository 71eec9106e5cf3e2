"""Why a model answered as it did: a text whose words are shaded by what each spoke for or against."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

UNREAD = 300  # characters shown of what the model did not read
_FAINT = 0.02  # of the largest score: fainter is not drawn


def explained(text: str, text_pair: str | None, answers: Mapping[str, Mapping[str, Any]]) -> str:
    """The text once for each model (`answers` by title, as `attribution.attribute` gives them).

    Blue words speak for the label and orange, dashed ones against it; all models share one scale, and each
    word's title gives its number.
    """
    largest = max(
        (abs(word["score"]) for answer in answers.values() for word in _scored(answer)), default=0.0
    )
    parts = [_one(title, text, text_pair, answer, largest) for title, answer in answers.items()]
    return f'<div class="explained" data-testid="explained">{"".join(parts)}{_key(answers)}</div>'


def _scored(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [word for word in (*answer["words"], *(answer["pair_words"] or ())) if word["score"] is not None]


def _one(title: str, text: str, text_pair: str | None, answer: Mapping[str, Any], largest: float) -> str:
    """One model's reading, and what its words sum up to."""
    sides = [(text, answer["words"])]
    if answer["pair_words"] is not None:
        sides.append((text_pair or "", answer["pair_words"]))
    drawn = "".join(f"<p>{_text(side, words, largest)}</p>" for side, words in sides)
    label = answer["label"]
    what = "the number" if label is None else f"the log-odds of {html.escape(label)}"
    return (
        f"<h4>{html.escape(title)}</h4>{drawn}"
        f'<p class="quiet">With every word masked {what} would be {answer["start"]:.2f}; '
        f"the words bring it to {answer['value']:.2f} (error of the sum {abs(answer['delta']):.1g}).</p>"
    )


def _text(text: str, words: Sequence[Mapping[str, Any]], largest: float) -> str:
    """Every character in its place, the words marked."""
    parts, at = [], 0
    for word in words:
        parts += [html.escape(text[at : word["start"]]), _word(word, largest)]
        at = word["end"]
    return "".join([*parts, html.escape(text[at:])])


def _word(word: Mapping[str, Any], largest: float) -> str:
    score, shown = word["score"], html.escape(word["text"])
    if score is None:
        rest = html.escape(word["text"][:UNREAD]) + "…" * (len(word["text"]) > UNREAD)
        return f'<span class="unread" title="not read">{rest}</span>'
    share = abs(score) / largest if largest else 0.0
    if share < _FAINT:
        return f'<span title="{score:+.3f}">{shown}</span>'
    side = "for" if score > 0 else "against"
    return f'<span class="{side}" style="--share:{share:.2f}" title="{score:+.3f}">{shown}</span>'


def _key(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """What the two colours mean."""
    is_number = any(answer["label"] is None for answer in answers.values())
    ends = ("raise the number", "lower it") if is_number else ("speak for the label", "speak against it")
    return (
        '<p class="quiet key"><span class="for" style="--share:0.6">blue</span> words '
        f'{ends[0]}, <span class="against" style="--share:0.6">orange</span> ones {ends[1]}; '
        f"hold the pointer on a word for its number (integrated gradients, {_steps(answers)} steps).</p>"
    )


def _steps(answers: Mapping[str, Mapping[str, Any]]) -> str:
    return " / ".join(dict.fromkeys(str(answer["steps"]) for answer in answers.values()))
