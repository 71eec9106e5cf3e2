"""Attribution of a prediction as HTML: a text whose words are shaded by their scores."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

UNREAD = 300  # most characters shown of text beyond max_length
_FAINT = 0.02  # share of the largest score below which a word is not shaded


def attribution_view(text: str, text_pair: str | None, answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text once for each model, with words shaded by their attribution.

    Blue words support the label and orange, dashed ones oppose it. All models share one scale, and the title
    of a word gives its score.

    Args:
        text: the text.
        text_pair: the second text of a pair, or None.
        answers: results of `attribution.attribute` by the title of their model.
    """
    largest = max(
        (abs(word["score"]) for answer in answers.values() for word in _scored(answer)), default=0.0
    )
    parts = [_model_view(title, text, text_pair, answer, largest) for title, answer in answers.items()]
    return f'<div class="explained" data-testid="explained">{"".join(parts)}{_legend(answers)}</div>'


def _scored(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [word for word in (*answer["words"], *(answer["pair_words"] or ())) if word["score"] is not None]


def _model_view(
    title: str, text: str, text_pair: str | None, answer: Mapping[str, Any], largest: float
) -> str:
    """Return the text with one model's scores, and their sum."""
    sides = [(text, answer["words"])]
    if answer["pair_words"] is not None:
        sides.append((text_pair or "", answer["pair_words"]))
    paragraphs = "".join(f"<p>{_text(side, words, largest)}</p>" for side, words in sides)
    label = answer["label"]
    target = "the number" if label is None else f"the log-odds of {html.escape(label)}"
    return (
        f"<h4>{html.escape(title)}</h4>{paragraphs}"
        f'<p class="quiet">With every word masked {target} would be {answer["start"]:.2f}; '
        f"the words bring it to {answer['value']:.2f} (error of the sum {abs(answer['delta']):.1g}).</p>"
    )


def _text(text: str, words: Sequence[Mapping[str, Any]], largest: float) -> str:
    """Return the whole text with its words marked."""
    parts, end = [], 0
    for word in words:
        parts += [html.escape(text[end : word["start"]]), _word(word, largest)]
        end = word["end"]
    return "".join([*parts, html.escape(text[end:])])


def _word(word: Mapping[str, Any], largest: float) -> str:
    score, escaped = word["score"], html.escape(word["text"])
    if score is None:
        rest = html.escape(word["text"][:UNREAD]) + "…" * (len(word["text"]) > UNREAD)
        return f'<span class="unread" title="not read">{rest}</span>'
    share = abs(score) / largest if largest else 0.0
    if share < _FAINT:
        return f'<span title="{score:+.3f}">{escaped}</span>'
    side = "for" if score > 0 else "against"
    return f'<span class="{side}" style="--share:{share:.2f}" title="{score:+.3f}">{escaped}</span>'


def _legend(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the legend of the two colors."""
    is_number = any(answer["label"] is None for answer in answers.values())
    effects = ("raise the number", "lower it") if is_number else ("support the label", "oppose it")
    return (
        '<p class="quiet key"><span class="for" style="--share:0.6">blue</span> words '
        f'{effects[0]}, <span class="against" style="--share:0.6">orange</span> ones {effects[1]}; '
        f"hover over a word for its score (integrated gradients, {_steps(answers)} steps).</p>"
    )


def _steps(answers: Mapping[str, Mapping[str, Any]]) -> str:
    return " / ".join(dict.fromkeys(str(answer["steps"]) for answer in answers.values()))
