"""The owner of a run of a public demo and its share link, stored as `owner.json` in the run folder.

A run without this file belongs to the host: it was created by an app that is not public, or by a version
without owners.
"""

import hmac
import re
from pathlib import Path

from peft_core.errors import DamagedError
from peft_core.files.atomic import stamp_of
from peft_core.files.records import Record, read_record, write_sealed

OWNER_FILE = "owner.json"
_OWNER = re.compile(r"[0-9a-f]{64}")


class Ownership(Record):
    """The owner of a run, and its share link if it has one.

    Attributes:
        owner: SHA-256 of the owner's token; None for the host.
        link_nonce: The nonce from which, with the owner's token, the link's secret is derived.
        link_sha256: SHA-256 of the link's secret.
    """

    owner: str | None = None
    link_nonce: str | None = None
    link_sha256: str | None = None

    def is_owned_by(self, owner: str | None) -> bool:
        return _is_same(self.owner, owner)

    def is_shared_with(self, link: str | None) -> bool:
        """Return whether `link`, the SHA-256 of a link's secret, is the run's share link."""
        return _is_same(self.link_sha256, link)


def read_ownership(folder: Path) -> Ownership:
    """Read the owner of a run folder. A damaged record reads as one without an owner and without a link."""
    path = f"{folder}/{OWNER_FILE}"
    if stamp_of(path) is None:
        return Ownership()
    try:
        return read_record(path, Ownership, sealed=True)
    except DamagedError:
        return Ownership()


def write_ownership(folder: Path, ownership: Ownership) -> None:
    """Replace `owner.json` atomically."""
    write_sealed(folder / OWNER_FILE, ownership)


def is_owner(name: str) -> bool:
    """Return whether a name is the SHA-256 of a token, as the folder of a visitor's uploads is named."""
    return _OWNER.fullmatch(name) is not None


def _is_same(stored: str | None, candidate: str | None) -> bool:
    return stored is not None and candidate is not None and hmac.compare_digest(stored, candidate)
