"""Whose a run of a public demo is, and who else may read it: `owner.json` in the run's folder.

A run without this file is of the host: it was made on a page that is not public, or before there were owners.
"""

import hmac
import re
from pathlib import Path

from peft_core.errors import DamagedError
from peft_core.files import stamp_of
from peft_core.records import Record, read_record, write_sealed

OWNER_FILE = "owner.json"
_OWNER = re.compile(r"[0-9a-f]{64}")


class Ownership(Record):
    """An owner, and the share link of a run if it has one.

    Attributes:
        owner: SHA-256 of the owner's token; None for the host.
        link_nonce: what the link's secret is derived from, beside the owner's token.
        link_sha256: SHA-256 of the link's secret.
    """

    owner: str | None = None
    link_nonce: str | None = None
    link_sha256: str | None = None

    def is_owned_by(self, owner: str | None) -> bool:
        return _is_same(self.owner, owner)

    def is_shared_with(self, link: str | None) -> bool:
        """Whether a link with a secret of this SHA-256 shares the run."""
        return _is_same(self.link_sha256, link)


def read_ownership(folder: Path) -> Ownership:
    """Whose a run folder is; a damaged record is nobody's."""
    path = f"{folder}/{OWNER_FILE}"
    if stamp_of(path) is None:
        return Ownership()
    try:
        return read_record(path, Ownership, sealed=True)
    except DamagedError:
        return Ownership()


def write_ownership(folder: Path, ownership: Ownership) -> None:
    """Replace the record, whole or not at all."""
    write_sealed(folder / OWNER_FILE, ownership)


def is_owner(name: str) -> bool:
    """Whether a name is the SHA-256 of a token, such as that of a folder of one visitor's uploads."""
    return _OWNER.fullmatch(name) is not None


def _is_same(kept: str | None, given: str | None) -> bool:
    return kept is not None and given is not None and hmac.compare_digest(kept, given)
