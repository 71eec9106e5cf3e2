"""Keys of texts that are equal up to case, spacing and Unicode form."""

import unicodedata

TextKey = str | tuple[str, str]  # key of a text, or of both texts of a pair


def text_key(text: str | None) -> str:
    """Return the key of a text, equal for texts that differ only in case, spacing or Unicode form."""
    text = text or ""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def pair_key(text: str | None, text_pair: str | None) -> tuple[str, str]:
    """Return the keys of both texts of a pair."""
    return text_key(text), text_key(text_pair)
