"""The one form that texts share which differ in case, spacing or Unicode form alone."""

import unicodedata

TextKey = str | tuple[str, str]  # of a text, or of both texts of a pair


def text_key(text: str | None) -> str:
    """Return what two texts share that differ in case, spacing or Unicode form alone."""
    text = text or ""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def pair_key(text: str | None, text_pair: str | None) -> tuple[str, str]:
    """Return the keys of both texts of a pair."""
    return text_key(text), text_key(text_pair)
