"""Push an adapter or a merged model, with its card, to a person's own account on the Hub."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from peft_core.errors import HubError
from peft_core.export.archives import folder_of, verified_files
from peft_core.export.hub.account import check_name, check_rights, find_account, hub_in_words
from peft_core.export.hub.model_card import model_card
from peft_core.inference.classifier import CLASSIFIER_FILE, Classifier
from peft_core.pictures.pieces import size
from peft_core.progress import Progress, unheard
from peft_core.runs import Run
from peft_core.sources import from_hub

CARD = "README.md"
_KEPT = ".gitattributes"  # the Hub's own file, without which large files are not found
_NAMES_BASE = ("adapter_config.json", CLASSIFIER_FILE)


def push(
    run: Run,
    kind: str,
    repo_id: str,
    token: str,
    *,
    private: bool = True,
    overwrite: bool = False,
    progress: Progress = unheard,
) -> dict[str, str]:
    """Upload `adapter` or `merged` with its card in one commit; what comes back is `{url, commit, repo_id}`.

    `repo_id` is a name under the token's own account, or owner/name. A repository that exists is refused
    unless it may be overwritten: then it holds these files and no others. One that this call created is
    removed again if the upload fails. Raises RunError (nothing to push) or HubError.
    """
    check_name(repo_id)
    folder = folder_of(run, kind)
    progress(0.0, "Asking the Hub whose token this is")
    account = find_account(token)
    owner, _, name = repo_id.rpartition("/")
    repo_id = f"{owner or account.name}/{name}"
    check_name(repo_id)
    check_rights(account, repo_id)
    files = _files(run, kind, repo_id, folder)
    api = HfApi(token=token)
    there = _existing(api, repo_id, private) if overwrite else None
    progress(0.1, f"Opening {repo_id}")
    if there is None:
        _create(api, repo_id, private)
    with _removed_if_it_fails(api, repo_id, there is None):
        progress(0.2, f"Uploading {size(sum(file.upload_info.size for file in files))} to {repo_id}")
        commit = _upload(api, repo_id, f"{run.run_id}: {kind}, by PEFT Workbench", files, there)
    progress(1.0, "Pushed")
    return {"url": f"{api.endpoint}/{repo_id}", "commit": commit, "repo_id": repo_id}


def _files(run: Run, kind: str, repo_id: str, folder: Path) -> list[CommitOperationAdd]:
    """What is uploaded: the folder's files and the card, which is written nowhere else."""
    classifier = Classifier.read(run)
    files = [CommitOperationAdd(CARD, model_card(run, kind, repo_id).encode())]
    for name in sorted(verified_files(run, folder)):
        if Path(name).name != CARD:
            files.append(CommitOperationAdd(name, _content(folder / name, classifier)))
    return files


def _content(path: Path, classifier: Classifier) -> Path | bytes:
    """A file, or its bytes without the folder of this machine that a local base model lies in."""
    base = classifier.base_model_name_or_path
    if path.name not in _NAMES_BASE or from_hub(base, classifier.base_revision):
        return path
    held = json.loads(path.read_text(encoding="utf-8"))
    told = {key: Path(base).name if value == base else value for key, value in held.items()}
    return (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode()


def _existing(api: HfApi, repo_id: str, private: bool) -> Any | None:
    """What the Hub tells of a repository, or None if there is none; HubError if it is public and must not."""
    with hub_in_words(repo_id):
        try:
            found = api.model_info(repo_id)
        except RepositoryNotFoundError:
            return None
    if private and not found.private:
        raise HubError(
            f"{repo_id!r} is public and would stay so; make it private on the Hub, or push it as public."
        )
    return found


def _create(api: HfApi, repo_id: str, private: bool) -> None:
    with hub_in_words(repo_id):
        try:
            api.create_repo(repo_id, private=private)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            raise HubError(
                f"{repo_id!r} exists already; choose another name, or say that it may be overwritten."
            ) from error


@contextlib.contextmanager
def _removed_if_it_fails(api: HfApi, repo_id: str, created: bool) -> Iterator[None]:
    """Delete the repository that this push created, and no other, if it ends before its files are there."""
    try:
        yield
    except BaseException as error:
        if created and not _removed(api, repo_id) and isinstance(error, HubError):
            at = f"{api.endpoint}/{repo_id}"
            raise HubError(f"{error} An empty repository is left at {at}: delete it by hand.") from error
        raise


def _removed(api: HfApi, repo_id: str) -> bool:
    try:
        api.delete_repo(repo_id, missing_ok=True)
        return True
    except Exception:  # whatever it is, the first error is the one to tell
        return False


def _upload(
    api: HfApi, repo_id: str, message: str, files: list[CommitOperationAdd], there: Any | None
) -> str:
    """The commit that now holds these files and, of those that were `there`, no others."""
    new = {file.path_in_repo for file in files}
    old = [file.rfilename for file in there.siblings] if there else []
    gone = [CommitOperationDelete(path) for path in old if path not in new and path != _KEPT]
    parent = there.sha if there else None  # so that nobody's change in between is lost
    with hub_in_words(repo_id):
        return api.create_commit(repo_id, [*gone, *files], commit_message=message, parent_commit=parent).oid
