"""Visitors of a public demo: ownership of runs and uploads, access of other visitors, and share links."""

import inspect
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import copy_of
from small_data import write_csv

from peft_core import runs
from peft_core.access.visitors import LOCAL_USER, Visitor, new_token, sha256_of
from peft_core.config import TrainConfig
from peft_core.data.uploads import hide_upload_folders, upload_label
from peft_core.disk.storage import Storage
from peft_core.errors import ConfigError, DataError, RunError, StorageError
from peft_core.export.snippets import ApiAccess
from peft_core.runs import Run
from peft_core.runs.ownership import Ownership, read_ownership, write_ownership
from peft_core.service.workbench import Workbench
from peft_core.service.worker import Worker

CHANGES = {
    "stop",
    "delete",
    "resume",
    "evaluate",
    "merge",
    "save_decision_rule",
    "make",
    "push",
    "find_own",
    "predict_file",
}
ROWS = [(f"Text {i}", ["yes", "no"][i % 2]) for i in range(40)]
ACCEPT_UNKNOWN_ID = (
    "result_of",
    "holds",
    "was_expired",
    "restore",
)  # methods that do not raise for an unknown run
ARGUMENTS: dict[str, Any] = {
    "text": "good", "variant": "adapter", "path": Path("a.csv"), "columns": {}, "kind": "onnx",
    "query": "good", "true": "", "predicted": "", "max_rows": 5, "number": 0, "decision_rule": {},
    "thresholds": False, "percent_right": None, "repo_id": "a/b", "token": "hf_x", "private": True,
    "overwrite": False, "access": ApiAccess("http://localhost"), "text_pair": None, "label": None,
    "sheet_name": None, "header_row": None, "name": None, "options": {},
}  # fmt: skip


def visitor_with(token: str, link: str | None = None) -> Visitor:
    headers = {"x-visitor-token": token, **({"x-share-key": link} if link else {})}
    return Visitor.from_headers(headers)


class Demo:
    """A public workbench with a visitor that the test sets."""

    def __init__(self, runs_dir: Path, **options: Any) -> None:
        self.tokens = {name: new_token() for name in ("anna", "ben")}
        self.visitor = Visitor()
        self.workbench = Workbench.open(runs_dir, public=True, visitor=lambda: self.visitor, **options)

    def as_visitor(self, name: str, link: str | None = None) -> Workbench:
        self.visitor = visitor_with(self.tokens[name], link)
        return self.workbench

    def as_anonymous(self) -> Workbench:
        self.visitor = Visitor()
        return self.workbench

    def owner(self, name: str) -> str:
        return sha256_of(self.tokens[name])


@pytest.fixture(scope="module", autouse=True)
def shared_workers() -> Iterator[None]:
    """Share the workers among all demos of this file: each takes seconds to start."""
    workers: dict[tuple[float | None, ...], Worker] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "peft_core.service.workbench.Worker", lambda *limits: workers.setdefault(limits, Worker(*limits))
        )
        yield
    for worker in workers.values():
        worker.close()


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path / "runs")


@pytest.fixture
def run(demo: Demo, finished_run: Run) -> Run:
    """A finished run that Anna owns."""
    demo.workbench.runs_dir.mkdir()
    run = copy_of(finished_run, demo.workbench.runs_dir)
    write_ownership(run.folder, Ownership(owner=demo.owner("anna")))
    return run


def calls_with_run_id(workbench: Workbench, run_id: str) -> dict[str, Callable[[], Any]]:
    """Return a call of each method that takes a run id, and of `compare_runs`."""
    calls = {}
    for name, method in inspect.getmembers(workbench, inspect.ismethod):
        parameters = inspect.signature(method).parameters
        if name.startswith("_") or "run_id" not in parameters or name in ACCEPT_UNKNOWN_ID:
            continue
        names = [key for key, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
        arguments = {key: run_id if key == "run_id" else ARGUMENTS[key] for key in names}
        calls[name] = lambda method=method, arguments=arguments: _exhaust(method(**arguments))
    calls["compare_runs"] = lambda: workbench.compare_runs("good", [run_id])
    return calls


def _copy(run: Run, folder: Path) -> Run:
    return Run(shutil.copytree(run.folder, folder))


def _exhaust(response: Any) -> Any:
    return list(response) if isinstance(response, Iterator) else response


def test_visitor_with_malformed_token_has_no_owner() -> None:
    token = new_token()
    assert visitor_with(token).owner == sha256_of(token)
    for header in ("", "a" * 63, "a" * 65, "A" * 64, f"{token}\n", f" {token}", "None"):
        assert Visitor.from_headers({"x-visitor-token": header}).owner is None
    assert token not in repr(visitor_with(token))


def test_run_of_another_visitor_is_not_found(demo: Demo, run: Run) -> None:
    unknown = {
        name: str(_error(call)) for name, call in calls_with_run_id(demo.as_visitor("ben"), "no-run").items()
    }
    assert len(unknown) > 20 and set(unknown) >= CHANGES
    for workbench in (demo.as_visitor("ben"), demo.as_anonymous(), demo.as_visitor("ben", link=new_token())):
        for name, call in calls_with_run_id(workbench, run.run_id).items():
            assert str(_error(call)) == unknown[name].replace("no-run", run.run_id), name
        assert workbench.list_runs() == [] and workbench.result_of(run.run_id) == {}
        assert not workbench.holds(run.run_id, "adapter")
    assert run.folder.is_dir() and demo.as_visitor("anna").list_runs() == [run]


def _error(call: Callable[[], Any]) -> RunError:
    with pytest.raises(RunError) as raised:
        call()
    return raised.value


def test_shared_run_is_read_only(demo: Demo, run: Run) -> None:
    secret = demo.as_visitor("anna").access.share(run.run_id)
    reader = demo.as_visitor("ben", link=secret)
    assert reader.list_runs() == [run] and reader.status(run.run_id)["may_change"] is False
    assert reader.predict("Good food.", run.run_id, "adapter")["label"]
    assert reader.archive(run.run_id, "adapter").is_file()
    calls = calls_with_run_id(reader, run.run_id)
    for name in CHANGES:
        assert "is not yours" in str(_error(calls[name])), name
    for change in (reader.access.share, reader.access.revoke):
        with pytest.raises(RunError, match="is not yours"):
            change(run.run_id)
    assert demo.as_visitor("anna").status(run.run_id)["may_change"] is True


def test_revoked_link_never_works_again(demo: Demo, run: Run) -> None:
    first = demo.as_visitor("anna").access.share(run.run_id)
    assert demo.as_visitor("anna").access.share(run.run_id) == first, "the owner sees the same link again"
    assert demo.as_visitor("anna").access.shared_secret(run) == first
    demo.as_visitor("anna").access.revoke(run.run_id)
    assert demo.as_visitor("anna").access.shared_secret(run) is None
    with pytest.raises(RunError, match="There is no run"):
        demo.as_visitor("ben", link=first).find(run.run_id)
    second = demo.as_visitor("anna").access.share(run.run_id)
    assert second != first and demo.as_visitor("ben", link=second).find(run.run_id) == run
    with pytest.raises(RunError, match="There is no run"):
        demo.as_visitor("ben", link=first).find(run.run_id)
    assert demo.tokens["anna"] not in (run.folder / "owner.json").read_text()
    assert second not in (run.folder / "owner.json").read_text()


def test_share_link_opens_only_its_run(demo: Demo, run: Run) -> None:
    other = _copy(run, demo.workbench.runs_dir / "other-run")
    secret = demo.as_visitor("anna").access.share(run.run_id)
    assert demo.as_visitor("ben", link=secret).list_runs() == [run]
    with pytest.raises(RunError, match="There is no run"):
        demo.as_visitor("ben", link=secret).find(other.run_id)


def test_run_with_tampered_ownership_belongs_to_nobody(demo: Demo, run: Run) -> None:
    record = run.folder / "owner.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "owner": demo.owner("ben")}))
    assert demo.as_visitor("ben").list_runs() == [] and demo.as_visitor("anna").list_runs() == []


def test_host_runs_are_hidden_unless_examples(finished_run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    hidden, example = (_copy(finished_run, tmp_path / "runs" / name) for name in ("hidden", "example"))
    demo = Demo(tmp_path / "runs", examples=["example"])
    assert demo.as_anonymous().list_runs() == [example] and demo.as_visitor("ben").list_runs() == [example]
    with pytest.raises(RunError, match="There is no run 'hidden'"):
        demo.as_visitor("ben").find("hidden")
    with pytest.raises(RunError, match="is not yours"):
        demo.as_visitor("ben").delete("example")
    assert hidden.folder.is_dir() and example.folder.is_dir()


def test_deleted_run_is_restored_only_by_its_owner(demo: Demo, run: Run) -> None:
    demo.as_visitor("anna").delete(run.run_id)
    unknown = str(_error(lambda: demo.as_visitor("ben").restore("no-run")))
    for other in (demo.as_visitor("ben"), demo.as_anonymous()):
        assert str(_error(lambda other=other: other.restore(run.run_id))) == unknown.replace(
            "no-run", run.run_id
        )
    assert demo.as_visitor("anna").restore(run.run_id)["status"] == "FINISHED"
    assert demo.as_visitor("anna").list_runs() == [run]


def test_quota_limits_uploads_trainings_exports_and_restored_runs(
    demo: Demo, run: Run, tmp_path: Path
) -> None:
    used = demo.as_visitor("anna").usage()
    assert (used.runs, used.uploads) == (1, 0) and used.run_bytes > 10_000
    assert (
        used.describe().endswith("KB of 4 GB: 1 run, 0 uploads.") and demo.as_visitor("ben").usage().runs == 0
    )
    write_csv(tmp_path / "reviews.csv", ROWS)
    full = replace(demo.workbench.storage.quotas, visitor_bytes=used.total_bytes + 500)
    storage = Storage(demo.workbench.runs_dir, full)
    demo.workbench = replace(demo.workbench, storage=storage)
    requests: list[Callable[[Workbench], Any]] = [
        lambda bench: bench.upload([tmp_path / "reviews.csv"]),
        lambda bench: bench.train({}),
        lambda bench: list(bench.merge(run.run_id)),
        lambda bench: list(bench.make("onnx", run.run_id)),
    ]
    for request in requests:
        with pytest.raises(StorageError, match="delete a run|take a smaller one"):
            request(demo.as_visitor("anna"))
    demo.as_visitor("anna").delete(run.run_id)
    write_csv(tmp_path / "larger.csv", ROWS * 50)
    assert demo.as_visitor("anna").upload([tmp_path / "larger.csv"])
    with pytest.raises(StorageError, match="delete a run"):
        demo.as_visitor("anna").restore(run.run_id)


def test_refused_request_reserves_no_storage(demo: Demo, run: Run, tmp_path: Path) -> None:
    """A reservation may delete old runs of other visitors."""
    write_csv(tmp_path / "reviews.csv", ROWS)
    reservations: list[str] = []

    class Recorder(Storage):
        def reserve(self, owner: Any, needed: int, what: str, **options: Any) -> Any:
            reservations.append(what)
            return super().reserve(owner, needed, what, **options)

    demo.workbench = replace(demo.workbench, storage=Recorder(demo.workbench.runs_dir))
    file = tmp_path / "reviews.csv"
    with pytest.raises(DataError, match="send the header"):
        demo.as_anonymous().upload([file] * 15_000)
    with pytest.raises(DataError, match="15000 files were given"):
        demo.as_visitor("anna").upload([file] * 15_000)
    for _ in range(demo.workbench.limits.max_waiting):
        runs.create(demo.workbench.runs_dir, TrainConfig(), owner=sha256_of(new_token()))
    with pytest.raises(RunError, match="runs are waiting already"):
        demo.as_visitor("ben").train({})
    assert reservations == []
    assert demo.as_visitor("ben").upload([file]) and reservations == ["upload"]


def test_train_beyond_max_runs_raises_run_error(demo: Demo) -> None:
    for _ in range(demo.workbench.limits.max_runs):
        run = runs.create(demo.workbench.runs_dir, TrainConfig(), owner=demo.owner("anna"))
        run.update(status="KILLED")
    with pytest.raises(RunError, match="You have 50 runs, the most that this public demo keeps; delete some"):
        demo.as_visitor("anna").train({})


def test_compare_runs_limits_the_number_of_runs(demo: Demo, run: Run) -> None:
    run_ids = [f"run-{number}" for number in range(21)]
    with pytest.raises(DataError, match="21 runs are chosen; choose at most 20"):
        demo.as_visitor("anna").compare_runs("good", run_ids)
    predictions = demo.as_visitor("anna").compare_runs("good", [run.run_id] * 60_000)
    assert [prediction["run_id"] for prediction in predictions] == [run.run_id]


def test_status_of_example_hides_host_paths(finished_run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    _copy(finished_run, tmp_path / "runs" / "example")
    settings = Demo(tmp_path / "runs", examples=["example"]).as_anonymous().status("example")["settings"]
    config = finished_run.config()
    assert (
        Path(config.dataset_name).is_absolute() and settings["dataset_name"] == Path(config.dataset_name).name
    )
    assert settings["model_name_or_path"] == Path(config.model_name_or_path).name


def test_local_user_owns_every_run(run: Run) -> None:
    local_workbench = Workbench.open(run.folder.parent)
    assert local_workbench.list_runs() == [run] and local_workbench.describe(run)["may_change"] is True
    with pytest.raises(RunError, match="Only runs of a public demo have share links"):
        local_workbench.access.share(run.run_id)
    local_workbench.delete(run.run_id)
    assert local_workbench.list_runs() == []


def test_upload_of_another_visitor_is_not_found(demo: Demo, tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", ROWS)
    name = demo.as_visitor("anna").upload([tmp_path / "reviews.csv"])
    assert name.startswith("upload:reviews-") and upload_label(name) == "reviews"
    folder = demo.as_visitor("anna").config({"dataset_name": name}).dataset_name
    assert Path(folder).is_dir() and demo.owner("anna") in folder
    for workbench in (demo.as_visitor("ben"), demo.as_anonymous()):
        for dataset_name in (name, folder):
            with pytest.raises(ConfigError, match="no upload|on this public demo") as raised:
                workbench.config({"dataset_name": dataset_name})
            assert str(tmp_path) not in str(raised.value) and demo.owner("anna") not in str(raised.value)
    for forged in (
        "upload:",
        "upload:..",
        f"upload:../{demo.owner('anna')}/{Path(folder).name}",
        "upload:/etc",
    ):
        for visitor_name in ("anna", "ben"):
            with pytest.raises(ConfigError, match="There is no upload"):
                demo.as_visitor(visitor_name).config({"dataset_name": forged})


def test_upload_and_train_without_token_raise_errors(demo: Demo, tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", ROWS)
    with pytest.raises(DataError, match="send the header X-Visitor-Token with 64"):
        demo.as_anonymous().upload([tmp_path / "reviews.csv"])
    with pytest.raises(ConfigError, match="send the header X-Visitor-Token with 64"):
        demo.as_anonymous().train({})
    assert not (demo.workbench.runs_dir / ".uploads").exists()


def test_responses_to_visitors_contain_no_server_path(demo: Demo, tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", ROWS)
    workbench = demo.as_visitor("anna")
    name = workbench.upload([tmp_path / "reviews.csv"])
    config = workbench.config({"dataset_name": name})
    run = runs.create(workbench.runs_dir, config, owner=demo.owner("anna"))
    run.update(status="FAILED", error=f"DataError: {config.dataset_name!r} has no split 'x'.")
    access = ApiAccess("http://localhost", token=True)
    responses = [
        workbench.status(run.run_id),
        workbench.inspect({"dataset_name": name}),
        workbench.settings_of(run.run_id).to_dict(),
        *(workbench.training_code({"dataset_name": name}, kind, access) for kind in ("python", "script")),
    ]
    with pytest.raises(DataError) as raised:
        workbench.train({"dataset_name": name, "text_column": "missing"})
    for response in (*responses, str(raised.value)):
        assert str(tmp_path) not in json.dumps(response) and demo.owner("anna") not in json.dumps(response)
    assert responses[0]["settings"]["dataset_name"] == name and name in responses[0]["error"]
    assert workbench.settings_of(run.run_id) == TrainConfig.from_dict({"dataset_name": name})


def test_hide_upload_folders_keeps_other_texts() -> None:
    owner = "0" * 64
    assert hide_upload_folders(f"'/my runs/.uploads/{owner}/a-0123456789ab' has no split 'x'") == (
        "'upload:a-0123456789ab' has no split 'x'"
    )
    assert hide_upload_folders([f"in /srv/runs/.uploads/{owner}/a.csv: a/b"]) == ["in upload:a.csv: a/b"]
    for text in ("a/b and /srv/x", "/srv/runs/.uploads/a-0123456789ab", owner):
        assert hide_upload_folders({"text": text}) == {"text": text}


def test_current_run_hides_runs_of_other_visitors(demo: Demo, run: Run) -> None:
    first = runs.create(demo.workbench.runs_dir, TrainConfig(), owner=demo.owner("anna"))
    assert demo.as_visitor("anna").current_run() == first
    assert demo.as_visitor("ben").current_run() is None
    second = runs.create(demo.workbench.runs_dir, TrainConfig(), owner=demo.owner("ben"))
    assert demo.as_visitor("ben").current_run() == second and demo.as_visitor("anna").current_run() == first


def test_download_contains_no_ownership(demo: Demo, run: Run) -> None:
    archive = demo.as_visitor("anna").archive(run.run_id, "adapter")
    with zipfile.ZipFile(archive) as content:
        files = {name: content.read(name) for name in content.namelist()}
    assert files and not any("owner" in name for name in files)
    for data in files.values():
        assert demo.owner("anna").encode() not in data and str(demo.workbench.runs_dir).encode() not in data


def test_read_ownership_without_record_belongs_to_host(tmp_path: Path) -> None:
    assert read_ownership(tmp_path) == Ownership() and LOCAL_USER.owns_all
    assert not Ownership().is_owned_by(None) and not Ownership().is_shared_with(None)
