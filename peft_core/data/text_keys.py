"""The one form that texts share which differ in case, spacing or Unicode form alone."""

import unicodedata


def text_key(text: str | None, pair: str | None = None) -> str:
    """What two texts share that differ in case, spacing or Unicode form alone; both keys of a pair."""
    if pair is not None:
        return f"{text_key(text)}\0{text_key(pair)}"
    text = text or ""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())
