"""Who sends a request to a public demo, and what they may do with a run.

A visitor is whoever knows a token: 64 random hex digits that the page makes and keeps in the browser, and
that a program chooses for itself. It comes with each request in a header of its own, which no other website
can have a browser send, and which browsers do not add by themselves as they add cookies. Runs and uploads
are marked with its SHA-256, so that the disk does not hold the token.

A run can be shared by a link that holds a secret. The secret is derived from the owner's token and a random
nonce in the run's folder: the owner's page can show the link again, and nobody else can make it from what is
on the disk. A new nonce, or none, revokes it.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

TOKEN_HEADER = "X-Visitor-Token"
TOKEN_STORAGE_KEY = "peft-workbench-visitor"  # of the browser's local storage: the page keeps its token there
LINK_HEADER = "X-Share-Key"  # the secret of the link by which the page was opened
_SECRET = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Visitor:
    """Whoever asks.

    Attributes:
        owner: SHA-256 of the visitor's token; None for one who sent none.
        link: SHA-256 of the secret of a share link; None if the request came without one.
        owns_all: whether this is the user of an app that is not public, who owns every run.
        may_name_files: whether settings may name files of this machine.
    """

    owner: str | None = None
    link: str | None = None
    owns_all: bool = False
    may_name_files: bool = False
    token: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> "Visitor":
        """The visitor of a request; a header that is not 64 hex digits counts as missing."""
        token, key = _secret_of(headers, TOKEN_HEADER), _secret_of(headers, LINK_HEADER)
        return cls(
            owner=sha256_of(token) if token else None, link=sha256_of(key) if key else None, token=token
        )

    def share_secret(self, run_id: str, nonce: str) -> str:
        """The secret of this visitor's share link of a run, 64 hex digits."""
        if self.token is None:
            raise ValueError("a visitor without a token has no links")
        return hmac.new(self.token.encode(), f"share {run_id} {nonce}".encode(), hashlib.sha256).hexdigest()


LOCAL_USER = Visitor(owns_all=True, may_name_files=True)


def new_token() -> str:
    """A visitor's token: 64 random hex digits."""
    return secrets.token_hex(32)


def sha256_of(secret: str) -> str:
    """The hash under which a token or the secret of a link is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _secret_of(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name.lower(), "")
    return value if _SECRET.fullmatch(value) else None
