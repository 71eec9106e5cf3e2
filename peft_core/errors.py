"""The errors a person can mend: each message says what was wrong, with the value, and what to do.

Messages are shown to everyone who opens the page, so they name files and never where these lie on the disk:
`reason_of` gives what an error of the system or of a library says without its paths.
"""

import errno
import os
import re

# the folders of an absolute path, which may hold spaces if it is quoted; the file's own name stays
_FOLDERS = re.compile(r"""(?<=['"])~?/(?:[^'"/\n]+/)+|(?<![\w.:/~])~?/(?:[^\s'"/:]+/)+""")

MOST_SHOWN = 1500  # characters of a message


class PeftCoreError(Exception):
    """Base of all domain errors; anything else that is raised is a bug."""


class ConfigError(PeftCoreError):
    """A setting that is unknown, of the wrong type or out of bounds."""


class DataError(PeftCoreError):
    """Labelled text that cannot be read, or that no classifier can be trained or judged on."""


class ModelError(PeftCoreError):
    """A base model that is missing, damaged or no encoder classifier, or modules it does not have."""


class HubError(PeftCoreError):
    """A repository on the Hub that is missing, gated or out of reach."""


class RunError(PeftCoreError):
    """A run that does not exist, is not finished or has lost files."""


class DamagedError(RunError):
    """A file of a run that is missing, cut or not as it was written."""


class InputsChangedError(RunError):
    """A run that cannot continue: its data, base model, tokenizer or settings are not those it began with."""


class StorageError(PeftCoreError):
    """Something that does not fit into the disk space of a visitor, or of a public demo."""


class MergeError(PeftCoreError):
    """An adapter that cannot be merged, or a merge whose certificate does not hold."""


class ExportError(PeftCoreError):
    """A model that cannot be written in the form asked for, or is not the trained one once written."""


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it came of, the nearest first; each once, also where they form a cycle."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and not any(current is known for known in chain):
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def reason_of(error: BaseException) -> str:
    """Return what an error says without folders: of an OSError the system's own words for its number."""
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return without_folders(str(error)) or type(error).__name__


def shorten(text: str, most: int = MOST_SHOWN) -> str:
    """Return a text cut to so many characters, such as a message that quotes a value of any length."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def without_folders(text: str) -> str:
    """Return a text in which absolute paths are cut down to the names of their files."""
    return _FOLDERS.sub("", text)
