"""Identity of the visitors of a public demo, and the secrets of their share links.

A visitor is identified by a token: 64 random hex digits that the page generates and stores in the browser, or
that a program chooses for itself. Each request sends it in a custom header, which other websites cannot make
a browser send, and which browsers do not add on their own as they add cookies. Runs and uploads are marked
with the SHA-256 of the token, so that the token itself is never on disk.

A run can be shared by a link that contains a secret. The secret is derived from the owner's token and a
random nonce in the run's folder: the owner's page can show the link again, and nobody else can compute it
from the files on disk. Replacing or removing the nonce revokes the link.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

TOKEN_HEADER = "X-Visitor-Token"
TOKEN_STORAGE_KEY = "peft-workbench-visitor"  # of the token in the browser's local storage
LINK_HEADER = "X-Share-Key"  # the secret of the share link through which the page was opened
_SECRET = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Visitor:
    """The sender of a request.

    Attributes:
        owner: SHA-256 of the visitor's token; None if the request has no token.
        link: SHA-256 of the secret of a share link; None if the request has none.
        owns_all: Whether this is the user of an app that is not public, who owns every run.
        may_name_files: Whether settings may name files of this machine.
        token: The token itself.
    """

    owner: str | None = None
    link: str | None = None
    owns_all: bool = False
    may_name_files: bool = False
    token: str | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> "Visitor":
        """Return the visitor of a request; a header that is not 64 hex digits counts as missing."""
        token, key = _secret_of(headers, TOKEN_HEADER), _secret_of(headers, LINK_HEADER)
        return cls(
            owner=sha256_of(token) if token else None, link=sha256_of(key) if key else None, token=token
        )

    def share_secret(self, run_id: str, nonce: str) -> str:
        """Return the secret of this visitor's share link of a run: 64 hex digits."""
        if self.token is None:
            raise ValueError("a visitor without a token has no links")
        return hmac.new(self.token.encode(), f"share {run_id} {nonce}".encode(), hashlib.sha256).hexdigest()


LOCAL_USER = Visitor(owns_all=True, may_name_files=True)


def new_token() -> str:
    """Return a new visitor's token: 64 random hex digits."""
    return secrets.token_hex(32)


def sha256_of(secret: str) -> str:
    """Return the hash that is stored in place of a token or a link's secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _secret_of(headers: Mapping[str, str], name: str) -> str | None:
    secret = headers.get(name.lower(), "")
    return secret if _SECRET.fullmatch(secret) else None
