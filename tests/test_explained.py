"""The picture of an explanation: every character in its place, one scale, and no text as markup."""

import re
from xml.etree import ElementTree

import pytest

from peft_core.inference.attribution import attribute
from peft_core.inference.predictor import Predictor
from peft_core.runs import Run
from peft_core.views.attribution import UNREAD, attribution_view

SCRIPT = "<script>alert(1)</script>"


def answer(words: list[tuple[str, float | None]], label: str | None = "good", text: str = "") -> dict:
    """As `attribute` gives it, of words that the text holds in this order."""
    text, at, placed = text or " ".join(word for word, _ in words), 0, []
    for word, score in words:
        start = text.index(word, at)
        at = start + len(word)
        placed.append({"text": word, "start": start, "end": at, "score": score})
    held = {"words": placed, "pair_words": None, "tokens": [], "steps": 32, "delta": 0.001}
    return {**held, "label": label, "value": 1.25, "start": -0.5}


def drawn(found: str) -> ElementTree.Element:
    return ElementTree.fromstring(found.replace("&quot;", '"'))


def marks(found: str) -> list[tuple[str, float, str]]:
    """Side, share and title of each shaded word before the key."""
    pattern = r'<span class="(for|against)" style="--share:([\d.]+)" title="([^"]*)">'
    return [(side, float(share), title) for side, share, title in re.findall(pattern, found)]


def test_words_are_shaded_by_their_share_of_the_largest_of_all_models() -> None:
    one = answer([("good", 2.0), ("but", -1.0), ("the", 0.001)])
    other = answer([("good", -4.0), ("but", 0.5), ("the", 0.0)])
    found = attribution_view("good but the", None, {"Adapter": one, "Merged": other})
    assert marks(found) == [
        ("for", 0.5, "+2.000"),
        ("against", 0.25, "-1.000"),
        ("against", 1.0, "-4.000"),
        ("for", 0.12, "+0.500"),
    ]
    assert '<span title="+0.001">the</span>' in found and '<span title="+0.000">the</span>' in found
    for words in ("Adapter", "Merged", "log-odds of good", "-0.50", "1.25", "speak against it", "32 steps"):
        assert words in found


def test_every_character_is_drawn_in_its_place() -> None:
    text = "  a  <b>\n\nc & d"
    found = attribution_view(
        text, None, {"A": answer([("a", 1.0), ("<b>", -1.0), ("c", 0.2), ("d", 0.0)], text=text)}
    )
    paragraph = drawn(found).find("p")
    assert paragraph is not None and "".join(paragraph.itertext()) == text


def test_what_was_not_read_is_grey_and_cut() -> None:
    rest = "y" * (UNREAD + 50)
    found = attribution_view(f"x {rest}", None, {"A": answer([("x", 1.0), (rest, None)])})
    assert f'<span class="unread" title="not read">{"y" * UNREAD}…</span>' in found
    assert len(marks(found)) == 1


def test_a_number_and_a_pair_and_no_score_at_all() -> None:
    held = answer([("x", 0.0)], label=None)
    pair = {**held, "pair_words": answer([("second", 0.0)])["words"]}
    found = attribution_view("x", "second", {"A": pair})
    assert "raise the number" in found and "second" in found
    assert marks(found) == []
    assert len(drawn(found).findall("p")) == 4


def test_no_text_of_a_stranger_is_markup() -> None:
    found = attribution_view(
        SCRIPT,
        SCRIPT,
        {
            SCRIPT: {
                **answer([(SCRIPT, 1.0)], SCRIPT),
                "pair_words": [{"text": SCRIPT, "start": 0, "end": len(SCRIPT), "score": None}],
            }
        },
    )
    assert "<script" not in found and found.count("&lt;script") == 4


@pytest.mark.parametrize("text", ["The food was awful.", "awful " * 100, "名前 <b>"])
def test_a_real_explanation_can_be_drawn(text: str, merged_run: Run) -> None:
    answers = {
        variant: attribute(Predictor(merged_run.folder, variant), text, label="bad", steps=4)
        for variant in ("adapter", "merged")
    }
    found = drawn(attribution_view(text, None, answers))
    first, _, second = (part for part in found.findall("p")[:3])
    assert "".join(first.itertext()).rstrip("…") in text
    assert "".join(first.itertext()) == "".join(second.itertext())
