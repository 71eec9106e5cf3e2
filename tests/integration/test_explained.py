"""The attribution view: every character is shown in order, models share one scale, text is escaped."""

import re
from xml.etree import ElementTree

import pytest

from peft_core.inference.attribution import attribute
from peft_core.inference.predictor import Predictor
from peft_core.runs import Run
from peft_core.views.attribution import UNREAD, attribution_view

SCRIPT = "<script>alert(1)</script>"


def answer(words: list[tuple[str, float | None]], label: str | None = "good", text: str = "") -> dict:
    """Return attributions as `attribute` does, for words in the order of the text."""
    text, at, word_scores = text or " ".join(word for word, _ in words), 0, []
    for word, score in words:
        start = text.index(word, at)
        at = start + len(word)
        word_scores.append({"text": word, "start": start, "end": at, "score": score})
    details = {"words": word_scores, "pair_words": None, "tokens": [], "steps": 32, "delta": 0.001}
    return {**details, "label": label, "value": 1.25, "start": -0.5}


def parse_html(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html.replace("&quot;", '"'))


def marks(html: str) -> list[tuple[str, float, str]]:
    """Return side, share and title of each shaded word; the legend is left out."""
    pattern = r'<span class="(for|against)" style="--share:([\d.]+)" title="([^"]*)">'
    return [(side, float(share), title) for side, share, title in re.findall(pattern, html)]


def test_attribution_view_shades_words_on_one_scale_for_all_models() -> None:
    adapter = answer([("good", 2.0), ("but", -1.0), ("the", 0.001)])
    merged = answer([("good", -4.0), ("but", 0.5), ("the", 0.0)])
    html = attribution_view("good but the", None, {"Adapter": adapter, "Merged": merged})
    assert marks(html) == [
        ("for", 0.5, "+2.000"),
        ("against", 0.25, "-1.000"),
        ("against", 1.0, "-4.000"),
        ("for", 0.12, "+0.500"),
    ]
    assert '<span title="+0.001">the</span>' in html and '<span title="+0.000">the</span>' in html
    for words in ("Adapter", "Merged", "log-odds of good", "-0.50", "1.25", "oppose it", "32 steps"):
        assert words in html


def test_attribution_view_keeps_every_character() -> None:
    text = "  a  <b>\n\nc & d"
    html = attribution_view(
        text, None, {"A": answer([("a", 1.0), ("<b>", -1.0), ("c", 0.2), ("d", 0.0)], text=text)}
    )
    paragraph = parse_html(html).find("p")
    assert paragraph is not None and "".join(paragraph.itertext()) == text


def test_attribution_view_unread_text_is_marked_and_shortened() -> None:
    rest = "y" * (UNREAD + 50)
    html = attribution_view(f"x {rest}", None, {"A": answer([("x", 1.0), (rest, None)])})
    assert f'<span class="unread" title="not read">{"y" * UNREAD}…</span>' in html
    assert len(marks(html)) == 1


def test_attribution_view_zero_scores_of_regression_pair_have_no_shades() -> None:
    single = answer([("x", 0.0)], label=None)
    pair = {**single, "pair_words": answer([("second", 0.0)])["words"]}
    html = attribution_view("x", "second", {"A": pair})
    assert "raise the number" in html and "second" in html
    assert marks(html) == []
    assert len(parse_html(html).findall("p")) == 4


def test_attribution_view_escapes_all_text() -> None:
    html = attribution_view(
        SCRIPT,
        SCRIPT,
        {
            SCRIPT: {
                **answer([(SCRIPT, 1.0)], SCRIPT),
                "pair_words": [{"text": SCRIPT, "start": 0, "end": len(SCRIPT), "score": None}],
            }
        },
    )
    assert "<script" not in html and html.count("&lt;script") == 4


@pytest.mark.parametrize("text", ["The food was awful.", "awful " * 100, "名前 <b>"])
def test_attribution_view_of_real_attributions_is_well_formed(text: str, merged_run: Run) -> None:
    answers = {
        variant: attribute(Predictor(merged_run.folder, variant), text, label="bad", steps=4)
        for variant in ("adapter", "merged")
    }
    root = parse_html(attribution_view(text, None, answers))
    first, _, second = (part for part in root.findall("p")[:3])
    assert "".join(first.itertext()).rstrip("…") in text
    assert "".join(first.itertext()) == "".join(second.itertext())
