"""Push an adapter or a merged model, with its model card, to the user's account on the Hub."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from peft_core.errors import HubError
from peft_core.export.archives import folder_of, verified_files
from peft_core.export.hub.account import check_name, check_rights, find_account, translate_hub_errors
from peft_core.export.hub.model_card import model_card
from peft_core.inference.classifier import CLASSIFIER_FILE, Classifier
from peft_core.models.sources import is_hub_model
from peft_core.progress import Progress, no_progress
from peft_core.runs import Run
from peft_core.views.components import size

CARD = "README.md"
_GITATTRIBUTES = ".gitattributes"  # written by the Hub; without it large files are not found
_FILES_NAMING_BASE = ("adapter_config.json", CLASSIFIER_FILE)


def push(
    run: Run,
    kind: str,
    repo_id: str,
    token: str,
    *,
    private: bool = True,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> dict[str, str]:
    """Upload `adapter` or `merged` with its model card in one commit.

    A repository that this call created is deleted if the upload fails.

    Args:
        run: the run.
        kind: `adapter` or `merged`.
        repo_id: a name under the token's account, or owner/name.
        token: Hub token with write access.
        private: whether the repository is private.
        overwrite: replace all files of an existing repository; without it such a repository is refused.
        progress: callback for the share done and the current stage.

    Returns:
        `{url, commit, repo_id}`.

    Raises:
        RunError: there is nothing to push.
        HubError: the Hub refuses the token, the name or the upload, or cannot be reached.
    """
    check_name(repo_id)
    folder = folder_of(run, kind)
    progress(0.0, "Checking the Hub token")
    account = find_account(token)
    owner, _, name = repo_id.rpartition("/")
    repo_id = f"{owner or account.name}/{name}"
    check_name(repo_id)
    check_rights(account, repo_id)
    files = _files(run, kind, repo_id, folder)
    api = HfApi(token=token)
    existing = _existing(api, repo_id, private) if overwrite else None
    progress(0.1, f"Opening {repo_id}")
    if existing is None:
        _create(api, repo_id, private)
    with _delete_on_failure(api, repo_id, created=existing is None):
        progress(0.2, f"Uploading {size(sum(file.upload_info.size for file in files))} to {repo_id}")
        commit = _upload(api, repo_id, f"{run.run_id}: {kind}, by PEFT Workbench", files, existing)
    progress(1.0, "Pushed")
    return {"url": f"{api.endpoint}/{repo_id}", "commit": commit, "repo_id": repo_id}


def _files(run: Run, kind: str, repo_id: str, folder: Path) -> list[CommitOperationAdd]:
    """Return the files to upload: those of the folder, and the model card in place of its README.md."""
    classifier = Classifier.read(run)
    files = [CommitOperationAdd(CARD, model_card(run, kind, repo_id).encode())]
    for name in sorted(verified_files(run, folder)):
        if Path(name).name != CARD:
            files.append(CommitOperationAdd(name, _content(folder / name, classifier)))
    return files


def _content(path: Path, classifier: Classifier) -> Path | bytes:
    """Return the path of a file, or its content with the path of a local base model reduced to its name."""
    base = classifier.base_model_name_or_path
    if path.name not in _FILES_NAMING_BASE or is_hub_model(base, classifier.base_revision):
        return path
    settings = json.loads(path.read_text(encoding="utf-8"))
    public = {key: Path(base).name if value == base else value for key, value in settings.items()}
    return (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _existing(api: HfApi, repo_id: str, private: bool) -> ModelInfo | None:
    """Return a repository's ModelInfo or None; HubError if it is public, but `private` is requested."""
    with translate_hub_errors(repo_id):
        try:
            info = api.model_info(repo_id)
        except RepositoryNotFoundError:
            return None
    if private and not info.private:
        raise HubError(
            f"{repo_id!r} is public and would stay public; make it private on the Hub, or push it as public."
        )
    return info


def _create(api: HfApi, repo_id: str, private: bool) -> None:
    with translate_hub_errors(repo_id):
        try:
            api.create_repo(repo_id, private=private)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            raise HubError(
                f"{repo_id!r} exists already; choose another name, or allow overwriting it."
            ) from error


@contextlib.contextmanager
def _delete_on_failure(api: HfApi, repo_id: str, *, created: bool) -> Iterator[None]:
    """Delete the repository if this push created it and fails."""
    try:
        yield
    except BaseException as error:
        if created and not _delete(api, repo_id) and isinstance(error, HubError):
            url = f"{api.endpoint}/{repo_id}"
            raise HubError(f"{error} An empty repository is left at {url}: delete it by hand.") from error
        raise


def _delete(api: HfApi, repo_id: str) -> bool:
    try:
        api.delete_repo(repo_id, missing_ok=True)
        return True
    except Exception:  # any failure: the error of the upload is the one to report
        return False


def _upload(
    api: HfApi, repo_id: str, message: str, files: list[CommitOperationAdd], existing: ModelInfo | None
) -> str:
    """Upload the files, delete all others of an existing repository, and return the commit."""
    new = {file.path_in_repo for file in files}
    old = [file.rfilename for file in existing.siblings or ()] if existing else []
    deletions = [CommitOperationDelete(path) for path in old if path not in new and path != _GITATTRIBUTES]
    parent = existing.sha if existing else None  # the Hub refuses if someone committed in between
    with translate_hub_errors(repo_id):
        return api.create_commit(
            repo_id, [*deletions, *files], commit_message=message, parent_commit=parent
        ).oid
