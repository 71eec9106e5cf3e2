"""Hub accounts: the owner and the write permissions of a token, and messages for errors of the Hub."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from peft_core.errors import HubError, PeftCoreError, causes
from peft_core.export.hub.markdown import plain
from peft_core.files.atomic import translate_disk_errors
from peft_core.models.sources import HUB_TIMEOUT

_TOKEN = re.compile(r"[!-~]{1,4096}")  # what an HTTP header can carry
_WRITING_ROLES = ("admin", "write", "contributor")
_WRITE = "repo.write"
_SETTINGS = "huggingface.co/settings/tokens"
_NO_NETWORK = (httpx2.TransportError, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Account:
    """The account of a token.

    Attributes:
        name: user name.
        namespaces: users and organizations in which the token may create repositories.
        repos: single repositories that the token may write to.
    """

    name: str
    namespaces: tuple[str, ...]
    repos: tuple[str, ...] = ()

    @classmethod
    def from_whoami(cls, user: dict[str, Any]) -> "Account":
        """Read the Hub's answer to whoami-v2; for a token of an unknown role the Hub has to decide."""
        name = user["name"]
        organizations = [
            org["name"] for org in user.get("orgs") or () if org.get("roleInOrg", "write") in _WRITING_ROLES
        ]
        own = (name, *organizations)
        access = (user.get("auth") or {}).get("accessToken") or {}
        if access.get("role") == "read":
            return cls(name, ())
        if access.get("role") != "fineGrained":
            return cls(name, own)
        scopes = access.get("fineGrained") or {}
        if _WRITE in (scopes.get("global") or ()):
            return cls(name, own)
        writable = [
            scope["entity"]
            for scope in scopes.get("scoped") or ()
            if _WRITE in (scope.get("permissions") or ())
        ]
        namespaces = {entity["name"] for entity in writable if entity["type"] in ("user", "org")}
        repos = tuple(entity["name"] for entity in writable if entity["type"] == "model")
        return cls(name, tuple(namespace for namespace in own if namespace in namespaces), repos)

    def may_write(self, repo_id: str) -> bool:
        """Whether the token may write to a repository; names on the Hub are case-insensitive."""
        owner = repo_id.rpartition("/")[0]
        namespaces, repos = ({name.lower() for name in names} for names in (self.namespaces, self.repos))
        return owner.lower() in namespaces or repo_id.lower() in repos


def check_token(token: str) -> dict[str, Any]:
    """Return `name`, `namespaces` and `repos` of the token's account.

    Raises:
        HubError: the token is refused or may write nothing.
    """
    account = find_account(token)
    if not account.namespaces and not account.repos:
        raise HubError(_read_only_message(account))
    return {
        "name": account.name,
        "namespaces": list(account.namespaces),
        "repos": list(account.repos),
    }


def find_account(token: str) -> Account:
    """Request the account of a token from the Hub.

    An empty token is refused here, because huggingface_hub would use the token saved on this machine.

    Raises:
        HubError: the token is malformed or refused, or the Hub cannot be reached.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise HubError(f"The Hub token is empty or has invalid characters; copy it again from {_SETTINGS}.")
    url = f"{constants.ENDPOINT}/api/whoami-v2"
    with translate_hub_errors():
        response = get_session().get(url, headers=build_hf_headers(token=token), timeout=HUB_TIMEOUT)
        hf_raise_for_status(response)
        user = response.json()
    if not isinstance(user, dict) or not isinstance(user.get("name"), str):
        raise HubError(f"{constants.ENDPOINT} does not answer like a Hub; check HF_ENDPOINT.")
    return Account.from_whoami(user)


def check_name(repo_id: str) -> None:
    """Raise HubError if this is not a valid repository name; sends no request."""
    try:
        validate_repo_id(repo_id)
        if not repo_id or not repo_id.isascii():
            raise HFValidationError
    except HFValidationError as error:
        raise HubError(
            f"{plain(repo_id)!r} is not a valid repository name; write owner/name with letters, digits, "
            "'-', '_' and '.', at most 96 characters."
        ) from error


def check_rights(account: Account, repo_id: str) -> None:
    """Raise HubError if the token of an account may not write to a repository."""
    if account.may_write(repo_id):
        return
    owner = repo_id.rpartition("/")[0]
    if not account.namespaces and not account.repos:
        raise HubError(_read_only_message(account))
    allowed = ", ".join((*account.namespaces, *account.repos))
    raise HubError(f"This token of {account.name!r} may not write to {owner!r}; it may write to {allowed}.")


@contextlib.contextmanager
def translate_hub_errors(repo_id: str = "") -> Iterator[None]:
    """Turn errors of the Hub and the network into HubError, and a full disk into RunError; others pass."""
    try:
        yield
    except PeftCoreError:
        raise
    except Exception as error:
        message = _message(error, repo_id)
        if message is None:
            with translate_disk_errors():  # the xet client writes files of its own
                raise
        raise HubError(message) from error


def _message(error: Exception, repo_id: str) -> str | None:
    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError):
            return _status_message(cause, repo_id)
        if isinstance(cause, _NO_NETWORK):
            return "The Hub or its storage cannot be reached; check the network and try again."
        if isinstance(cause, json.JSONDecodeError):
            return "The Hub sent an answer that cannot be read; try again later."
    return None


def _status_message(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    reason = f" ({plain(error.server_message, 200)})" if error.server_message else ""
    if status in (401, 403) and not repo_id:
        return f"The Hub does not know this token, or it has expired; create another at {_SETTINGS}."
    if status in (401, 403):
        return f"The Hub does not let this token write to {repo_id!r}{reason}; make one with write rights."
    if status == 404 and repo_id:
        return f"There is no {repo_id!r} any more; try again."
    if status == 412:
        return f"{repo_id!r} was changed by someone else at the same time; try again."
    if status == 429:
        return "The Hub received too many requests; wait a few minutes and try again."
    if status >= 500:
        return f"The Hub has an internal error (status {status}); try again later."
    return f"The Hub refused the request with status {status}{reason}; try another name, or try again later."


def _read_only_message(account: Account) -> str:
    return f"This token of {account.name!r} may only read; make one with write rights at {_SETTINGS}."
