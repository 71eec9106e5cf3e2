"""Whose account a Hub token opens, what it may write to, and what the Hub's refusals mean."""

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
from peft_core.files import translate_disk_errors
from peft_core.sources import HUB_TIMEOUT

_TOKEN = re.compile(r"[!-~]{1,4096}")  # what a header can carry
_WRITING_ROLES = ("admin", "write", "contributor")
_WRITE = "repo.write"
_SETTINGS = "huggingface.co/settings/tokens"
_NO_NETWORK = (httpx2.TransportError, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Account:
    """The account behind a token: `namespaces` in which it may make repositories, single `repos` that it may
    write to."""

    name: str
    namespaces: tuple[str, ...]
    repos: tuple[str, ...] = ()

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Account":
        """From the Hub's answer to whoami-v2. What a token of an unknown kind may do is left to the Hub."""
        name = told["name"]
        organisations = [
            one["name"] for one in told.get("orgs") or () if one.get("roleInOrg", "write") in _WRITING_ROLES
        ]
        own = (name, *organisations)
        access = (told.get("auth") or {}).get("accessToken") or {}
        if access.get("role") == "read":
            return cls(name, ())
        if access.get("role") != "fineGrained":
            return cls(name, own)
        scopes = access.get("fineGrained") or {}
        if _WRITE in (scopes.get("global") or ()):
            return cls(name, own)
        written = [
            one["entity"] for one in scopes.get("scoped") or () if _WRITE in (one.get("permissions") or ())
        ]
        spaces = {one["name"] for one in written if one["type"] in ("user", "org")}
        repos = tuple(one["name"] for one in written if one["type"] == "model")
        return cls(name, tuple(space for space in own if space in spaces), repos)

    def may_write(self, repo_id: str) -> bool:
        """Names on the Hub are the same in small and capital letters."""
        owner = repo_id.rpartition("/")[0]
        spaces, repos = ({one.lower() for one in some} for some in (self.namespaces, self.repos))
        return owner.lower() in spaces or repo_id.lower() in repos


def check_token(token: str) -> dict[str, Any]:
    """`{name, namespaces, repos}`: whose token it is, the accounts in which it may make repositories, and
    single repositories that it may write to. Raises HubError for one that is refused or may write nothing.
    """
    account = find_account(token)
    if not account.namespaces and not account.repos:
        raise HubError(_only_reads(account))
    return {
        "name": account.name,
        "namespaces": list(account.namespaces),
        "repos": list(account.repos),
    }


def find_account(token: str) -> Account:
    """The account behind a token, asked in a few seconds. Raises HubError.

    An empty token is refused here: the client would take the one of this machine's owner for it.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise HubError(
            f"The Hub token is empty or holds characters that no token has; copy it again from {_SETTINGS}."
        )
    url = f"{constants.ENDPOINT}/api/whoami-v2"
    with hub_in_words():
        answer = get_session().get(url, headers=build_hf_headers(token=token), timeout=HUB_TIMEOUT)
        hf_raise_for_status(answer)
        told = answer.json()
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        raise HubError(f"{constants.ENDPOINT} answers, but not as a Hub does; check HF_ENDPOINT.")
    return Account.of(told)


def check_name(repo_id: str) -> None:
    """Raise HubError for what cannot be a repository's name, before anything is asked."""
    try:
        validate_repo_id(repo_id)
        if not repo_id or not repo_id.isascii():
            raise HFValidationError
    except HFValidationError as error:
        raise HubError(
            f"{plain(repo_id)!r} cannot name a repository; write owner/name with letters, digits, '-', '_' "
            "and '.', at most 96 of them."
        ) from error


def check_rights(account: Account, repo_id: str) -> None:
    """Raise HubError if a token may not write to a repository."""
    if account.may_write(repo_id):
        return
    owner = repo_id.rpartition("/")[0]
    if not account.namespaces and not account.repos:
        raise HubError(_only_reads(account))
    allowed = ", ".join((*account.namespaces, *account.repos))
    raise HubError(f"This token of {account.name!r} may not write to {owner!r}; it may write to {allowed}.")


@contextlib.contextmanager
def hub_in_words(repo_id: str = "") -> Iterator[None]:
    """Turn what goes wrong between here and the Hub into a HubError of one sentence, and a full disk into a
    RunError; other errors pass."""
    try:
        yield
    except PeftCoreError:
        raise
    except Exception as error:
        sentence = _sentence(error, repo_id)
        if sentence is None:
            with translate_disk_errors():  # the xet client keeps files of its own
                raise
        raise HubError(sentence) from error


def _sentence(error: Exception, repo_id: str) -> str | None:
    for seen in causes(error):
        if isinstance(seen, HfHubHTTPError):
            return _refusal(seen, repo_id)
        if isinstance(seen, _NO_NETWORK):
            return "The Hub or its storage cannot be reached; check the network and try again."
        if isinstance(seen, json.JSONDecodeError):
            return "The Hub gave an answer that cannot be read; try again later."
    return None


def _refusal(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    said = f" ({plain(error.server_message, 200)})" if error.server_message else ""
    if status in (401, 403) and not repo_id:
        return f"The Hub does not know this token, or it has expired; make another at {_SETTINGS}."
    if status in (401, 403):
        return f"The Hub does not let this token write to {repo_id!r}{said}; make one with write rights."
    if status == 404 and repo_id:
        return f"There is no {repo_id!r} any more; try again."
    if status == 412:
        return f"{repo_id!r} was changed by someone else in this very moment; try again."
    if status == 429:
        return "The Hub was asked too often; wait a few minutes and try again."
    if status >= 500:
        return f"The Hub has a fault of its own (status {status}); try again later."
    return f"The Hub refused this with status {status}{said}; try another name, or again later."


def _only_reads(account: Account) -> str:
    return f"This token of {account.name!r} may only read; make one with write rights at {_SETTINGS}."
