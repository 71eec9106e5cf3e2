"""Domain errors, which a user can fix: each message says what is wrong, with the value, and what to do.

Messages are shown to everyone who opens the page, so they contain file names but no folders: `reason_of`
returns the message of an error of the system or of a library without paths.

    PeftCoreError
    ├── ConfigError
    ├── DataError
    ├── ModelError
    ├── HubError
    ├── RunError
    │   ├── DamagedError
    │   └── InputsChangedError
    ├── StorageError
    ├── MergeError
    └── ExportError
"""

import errno
import os
import re

# The folders of an absolute path, which may contain spaces if it is quoted, without the file's own name.
_FOLDERS = re.compile(r"""(?<=['"])~?/(?:[^'"/\n]+/)+|(?<![\w.:/~])~?/(?:[^\s'"/:]+/)+""")

MAX_MESSAGE_LENGTH = 1500  # characters


class PeftCoreError(Exception):
    """Base class of all domain errors. Any other exception is a bug."""


class ConfigError(PeftCoreError):
    """A setting that is unknown, of the wrong type or out of bounds."""


class DataError(PeftCoreError):
    """Labeled text that cannot be read, or that no classifier can be trained or evaluated on."""


class ModelError(PeftCoreError):
    """A base model that is missing, damaged or not an encoder classifier, or modules it does not have."""


class HubError(PeftCoreError):
    """A Hub repository that is missing, gated or unreachable."""


class RunError(PeftCoreError):
    """A run that does not exist, is not finished, or has lost files."""


class DamagedError(RunError):
    """A file of a run that is missing, truncated or modified."""


class InputsChangedError(RunError):
    """A run that cannot continue, since its data, base model, tokenizer or settings have changed."""


class StorageError(PeftCoreError):
    """A write that does not fit into the disk space of a visitor or of a public demo."""


class MergeError(PeftCoreError):
    """An adapter that cannot be merged, or a merge that fails its certificate."""


class ExportError(PeftCoreError):
    """A model that cannot be exported, or an export that differs from the trained model."""


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and its causes, nearest first; each once, even if they form a cycle."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and not any(current is earlier for earlier in chain):
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def reason_of(error: BaseException) -> str:
    """Return the message of an error without folders; for an OSError, the system's text for its errno."""
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return without_folders(str(error)) or type(error).__name__


def shorten(text: str, max_length: int = MAX_MESSAGE_LENGTH) -> str:
    """Return a text cut to at most `max_length` characters."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def without_folders(text: str) -> str:
    """Return a text in which absolute paths are reduced to file names."""
    return _FOLDERS.sub("", text)
