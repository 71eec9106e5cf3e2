"""What the page and the endpoints can ask for, in JSON types, over the runs, the worker and the limits."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_core import runs
from peft_core.certificate import certificate_of_merged
from peft_core.config import TrainConfig
from peft_core.data.characters import check_text
from peft_core.data.unpacking import unpacked_bytes
from peft_core.data.uploads import UPLOADS, is_upload, store_upload
from peft_core.errors import ConfigError, DataError, RunError
from peft_core.export.archives import folder_of, zip_of
from peft_core.export.hub.push import push as push_to_hub
from peft_core.files import translate_disk_errors
from peft_core.inference.classifier import Classifier
from peft_core.launcher import Launcher
from peft_core.limits import Limits, check_names_no_files, check_offered, settings_with_files
from peft_core.presets import with_absolute_paths
from peft_core.progress import Progress
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue
from peft_core.worker import Report, Worker, in_thread


@dataclass(frozen=True)
class Workbench:
    """What the page and the endpoints ask for.

    Attributes:
        limits: None on a person's own machine, set where strangers come.
        may_name_files: whether whoever asks now may name files of this machine in settings.
    """

    launcher: Launcher
    worker: Worker
    limits: Limits | None
    may_name_files: Callable[[], bool] = lambda: True
    jobs: Worker = field(default_factory=Worker)  # of minutes, so that they hold up nobody's click
    file_worker: Worker | None = None  # reads strangers' files
    _counted: dict[str, int] = field(default_factory=dict)
    _uploading: threading.Lock = field(default_factory=threading.Lock)  # one upload is stored at a time

    @classmethod
    def open(
        cls, runs_dir: Path, *, public: bool = False, may_name_files: Callable[[], bool] = lambda: True
    ) -> "Workbench":
        """A workbench over a folder of runs; nothing is started or written yet."""
        if not public:
            return cls(Launcher(runs_dir, None), Worker(), None, may_name_files)
        limits = Limits()
        worker, jobs = Worker(limits.answer_seconds), Worker(limits.job_seconds)
        files = Worker(limits.reading_seconds, limits.reading_bytes)
        return cls(Launcher(runs_dir, limits), worker, limits, may_name_files, jobs, files)

    @property
    def runs_dir(self) -> Path:
        return self.launcher.runs_dir

    @property
    def uploads_dir(self) -> Path:
        return self.runs_dir.absolute() / UPLOADS

    @property
    def _files(self) -> Worker:
        return self.file_worker or self.worker

    def start(self) -> None:
        """Warm the workers, remove what dead processes left half-written, and take up runs that wait."""
        runs.sweep(self.runs_dir)
        self.worker.warm()
        self._files.warm()
        self.launcher.resume_queue()

    def config(self, settings: Mapping[str, Any]) -> TrainConfig:
        """Checked settings; ConfigError for one that is wrong, or that whoever asks may not give."""
        config = TrainConfig.from_dict(settings)
        if self.limits is not None:
            check_offered(config, self.uploads_dir)
            self.limits.check(config, self._upload_rows(config.dataset_name))
        elif not self.may_name_files():
            check_names_no_files(config, self.uploads_dir)
        return config

    def train(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`{run_id, waiting_for}`: the run started, or queued behind the one named."""
        config = self.config(settings)
        self._files.run("check", config.to_dict())
        forecast = self.worker.run("forecast", config.to_dict(), self.launcher.training_process())
        if self.limits is not None:
            self.limits.check_forecast(forecast)
        ahead = self.launcher.current()
        run = self.launcher.submit(with_absolute_paths(config), forecast_seconds=forecast["seconds"])
        return {"run_id": run.run_id, "waiting_for": ahead.run_id if ahead else None}

    def train_again(self, run_id: str) -> dict[str, Any]:
        """As `train`, with the settings of an earlier run: on its data and base model as they are now."""
        return self.train(self.find(run_id).config().to_dict())

    def find(self, run_id: str) -> Run:
        return runs.find(self.runs_dir, run_id)

    def list_runs(self) -> list[Run]:
        return runs.list_runs(self.runs_dir)

    def status(self, run_id: str) -> dict[str, Any]:
        """The run's state, its settings, and its result once there is one."""
        return self.describe(self.find(run_id))

    def result_of(self, run_id: str | None) -> dict[str, Any]:
        """What a run measured; empty for no run, and for one that has no adapter or is gone.

        Of a run that was not evaluated `problem_type` and `text_pair`, as its adapter says.
        """
        if not run_id:
            return {}
        result = _or_none(lambda: self.find(run_id).result())
        if result is not None:
            return result.to_dict()
        classifier = _or_none(lambda: Classifier.read(self.find(run_id)))
        return (
            {"problem_type": classifier.problem_type, "text_pair": classifier.text_pair} if classifier else {}
        )

    def describe(self, run: Run) -> dict[str, Any]:
        """As `status`, of a run at hand; parts whose files are lost are None."""
        state, damage = run.state(), run.damage()
        result, config = _or_none(run.result), _or_none(run.config)
        return {
            "run_id": run.run_id,
            **state.to_dict(),
            **self.launcher.queue_place(run).to_dict(),
            "settings": config.to_dict() if config else None,
            "can_continue": state.status in (runs.FAILED, runs.KILLED) and can_continue(run),
            "has_adapter": run.has_adapter,
            "merged": certificate_of_merged(run) is not None,
            "damage": damage,
            "usable": run.usable() if damage else [],
            "result": result.to_dict() if result else None,
        }

    def stop(self, run_id: str) -> dict[str, Any]:
        """`{run_id, status}` after the run was asked to stop."""
        return self._status_of(self.launcher.stop(run_id))

    def delete(self, run_id: str) -> dict[str, Any]:
        """`{run_id, deleted}` of a run that was removed with all its files.

        Raises RunError if it has not ended, and on a public demo, where runs belong to everyone.
        """
        if self.limits is not None:
            raise RunError("This public demo keeps its runs; nobody can delete one.")
        self.launcher.delete(run_id)
        return {"run_id": run_id, "deleted": True}

    def resume(self, run_id: str) -> dict[str, Any]:
        """`{run_id, status}` of a run that goes on from its newest checkpoint."""
        return self._status_of(self.launcher.resume(run_id))

    def evaluate(self, run_id: str) -> dict[str, Any]:
        """As `resume`, of a run whose newest checkpoint is evaluated as it is, without another step."""
        return self._status_of(self.launcher.resume(run_id, evaluate_only=True))

    @staticmethod
    def _status_of(run: Run) -> dict[str, Any]:
        return {"run_id": run.run_id, "status": run.state().status}

    def count(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Exact parameter counts; no weights are read."""
        return self.worker.run("count", self.config(settings).to_dict())

    def cost(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """As `count`, with the seconds and bytes that training is forecast to take, and the free bytes."""
        return self.worker.run("cost", self.config(settings).to_dict(), self.launcher.training_process())

    def describe_model(self, name: str, revision: str | None = None) -> dict[str, Any]:
        """A base model's kind, size, labels and modules, from its configuration alone."""
        config = self.config({"model_name_or_path": name, "revision": revision or None})
        return self.worker.run("describe_model", config.model_name_or_path, config.revision)

    def inspect(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What can be said of the data before training: columns, guesses, splits, tokens, findings."""
        return self._files.run("inspect", self.config(settings).to_dict())

    def upload(self, paths: Sequence[Path]) -> str:
        """Files as a data set of this workbench; what comes back is its `dataset_name`.

        Raises DataError for files that cannot be taken, on a public demo also for those that cannot be read.
        """
        with self._uploading, translate_disk_errors():
            if self.limits is None:
                in_use = self._data_in_use(list_all=True)
                return str(store_upload(paths, self.uploads_dir, in_use=in_use).folder)
            folder, is_new = store_upload(
                paths,
                self.uploads_dir,
                in_use=self._data_in_use(list_all=False),
                most_uploads=self.limits.max_uploads,
                most_bytes=self.limits.max_upload_bytes,
            )
            try:
                self._check_rows(folder)
            except DataError:
                if is_new:  # else a run may wait for it or train on it
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            return str(folder)

    def _upload_rows(self, name: str) -> int | None:
        """Rows of an uploaded data set, read once; None for one that was not uploaded."""
        if not is_upload(name, self.uploads_dir):
            return None
        if name not in self._counted:
            files = [str(path) for path in sorted(Path(name).iterdir())]
            self._counted[name] = self._files.run("count_rows", files)
        return self._counted[name]

    def _check_rows(self, folder: Path) -> None:
        rows, most = self._upload_rows(str(folder)) or 0, self.limits.max_upload_rows
        if rows > most:
            raise DataError(f"The files have {rows:,} rows; this public demo takes at most {most:,}.")

    def _data_in_use(self, *, list_all: bool) -> set[str]:
        """Data sets of all runs, or of those alone that wait or train."""
        wanted = (run for run in self.list_runs() if list_all or run.state().status not in runs.ENDED)
        configs = (_or_none(run.config) for run in wanted)
        return {config.dataset_name for config in configs if config is not None}

    def merge(self, run_id: str) -> Iterator[Report]:
        """Reports, the last with the certificate."""
        return self.worker.stream("merge", str(self.find(run_id).folder))

    def predict(self, text: str, run_id: str, variant: str, text_pair: str | None = None) -> dict[str, Any]:
        """`{label, scores, ms, note}` of one text, with `labels` or `value` where the task has them."""
        texts = self._checked_texts(text, text_pair)
        return self.worker.run("predict", str(self.find(run_id).folder), variant, *texts)

    def compare_runs(self, text: str, run_ids: Sequence[str], text_pair: str | None = None) -> list[dict]:
        """What the adapter of each run says of one text, or `error`; runs of one base hold it once."""
        texts = self._checked_texts(text, text_pair)
        if not run_ids:
            raise DataError("No run is chosen; choose one or more.")
        return self.worker.run("compare_runs", [str(self.find(name).folder) for name in run_ids], *texts)

    def look_at_file(
        self, path: Path, run_id: str, sheet_name: str | None = None, header_row: int | None = None
    ) -> dict[str, Any]:
        """A file's `columns`, their roles, its first `rows`; a workbook's `sheets`, `sheet`, `header_row`."""
        self._check_bytes(path)
        folder = str(self.find(run_id).folder)
        return self._files.run("look_at_file", folder, str(path), sheet_name or None, header_row or None)

    def predict_file(
        self, path: Path, run_id: str, variant: str, columns: Mapping[str, Any], name: str | None = None
    ) -> Iterator[Report]:
        """Reports, the last with `path` and what the written file holds; `cancel(name)` ends it.

        `columns` names `text`, and `text_pair` and `label` where there are any; `exact` keeps to float32.
        `sheet_name` and `header_row` choose a table as the settings of these names do.
        """
        self._check_bytes(path)
        names = ("text", "text_pair", "label", "sheet_name", "header_row")
        request = {name: columns.get(name) or None for name in names} | {"exact": bool(columns.get("exact"))}
        request["most_rows"] = self.limits.max_upload_rows if self.limits else None
        folder = str(self.find(run_id).folder)
        return self.jobs.stream("predict_file", folder, variant, str(path), request, name=name)

    def explain(
        self, text: str, run_id: str, label: str | None = None, text_pair: str | None = None
    ) -> Iterator[Report]:
        """Reports, the last with what each word of a text adds to a label (by default the predicted one) in
        every variant."""
        typed, pair = self._checked_texts(text, text_pair)
        return self.worker.stream("explain", str(self.find(run_id).folder), typed, label, pair)

    def review(
        self, run_id: str, kind: str, query: str, true: str, predicted: str, most: int
    ) -> dict[str, Any]:
        """Test rows: `all` or the `hardest` that match, or those with `suspected` labels."""
        folder = str(self.find(run_id).folder)
        return self.worker.run("review", folder, kind, query, true or None, predicted or None, most)

    def row(self, run_id: str, number: int) -> dict[str, Any]:
        """One test row by its number."""
        return self.worker.run("row", str(self.find(run_id).folder), number)

    def rule(self, run_id: str) -> dict[str, Any]:
        """`temperature`, `thresholds` by label (empty: plain) and `abstain_below`, as saved with the run."""
        return self.worker.run("rule", str(self.find(run_id).folder))

    def judge_rule(self, run_id: str, rule: Mapping[str, Any]) -> dict[str, Any]:
        """What a rule is worth on the run's test rows, beside the plain one."""
        return self.worker.run("judge_rule", str(self.find(run_id).folder), dict(rule))

    def suggest_rule(self, run_id: str, thresholds: bool, percent_right: float | None) -> dict[str, Any]:
        """A rule from the run's validation rows; `percent_right` of the answers are to be right, if given."""
        if percent_right and not 0 < percent_right <= 100:
            raise ConfigError(f"{percent_right:g} % of right answers cannot be; ask for 1 to 100.")
        share = percent_right / 100 if percent_right else None
        return self.worker.run("suggest_rule", str(self.find(run_id).folder), thresholds, share)

    def save_rule(self, run_id: str, rule: Mapping[str, Any]) -> None:
        """Keep a rule with the run: predictions and exports go by it."""
        self.worker.run("save_rule", str(self.find(run_id).folder), dict(rule))

    def make(self, kind: str, run_id: str, **options: Any) -> Iterator[Report]:
        """Reports while `onnx` (option max_drop), `embeddings`, a `page` or a `script` is made; the last has
        its report, and the zip is `taken`'s."""
        if kind == "script":  # the training rows are not for everyone who comes by
            options["rows"] = self.limits is None
        return self.jobs.stream("make", str(self.find(run_id).folder), kind, options)

    def archive(self, run_id: str, kind: str) -> Path:
        """The zip of something that a run has: one of `archives.KINDS`, or a `script`, which is written now.

        Raises RunError if the run has nothing of this kind.
        """
        if kind != "script":
            return zip_of(self.find(run_id), kind)
        *_, last = self.make("script", run_id)
        return Path(last.result["zip"])

    def holds(self, run_id: str | None, kind: str) -> bool:
        """Whether a run has something of this kind to take away by now."""
        return bool(run_id) and _or_none(lambda: folder_of(self.find(run_id), kind)) is not None

    def push(
        self, run_id: str, kind: str, repo_id: str, token: str, private: bool, overwrite: bool
    ) -> Iterator[Report]:
        """Reports, the last with the address on the Hub. The token is passed on and kept nowhere."""
        run, asked = self.find(run_id), {"private": private, "overwrite": overwrite}

        def upload(progress: Progress) -> dict[str, str]:
            with run.detect_deletion():
                return push_to_hub(run, kind, repo_id, token, progress=progress, **asked)

        return in_thread(upload)

    def code(self, run_id: str, kind: str, url: str, auth: bool = False) -> str:
        """The run as a `script`, or the app's API as `python`, `curl` or `mcp` with its id filled in."""
        return self.worker.run("code", str(self.find(run_id).folder), kind, url, auth)

    def training_code(self, settings: Mapping[str, Any], kind: str, url: str, auth: bool = False) -> str:
        """As `code`, of settings that are not trained yet; the code logs in if they name local files."""
        config = self.config(settings)
        login = auth or bool(settings_with_files(config, self.uploads_dir))
        return self.worker.run("training_code", config.to_dict(), kind, url, login)

    def neighbours(self, query: str, run_id: str) -> dict[str, list[dict[str, Any]]]:
        """The test rows nearest to a query, under `base` and `adapted`."""
        self.check_text(query)
        return self.worker.run("neighbours", str(self.find(run_id).folder), query)

    def cancel(self, name: str) -> None:
        """End a job that was started under this name."""
        self.jobs.cancel(name)

    def _check_bytes(self, path: Path) -> None:
        if self.limits is None:
            return
        size = unpacked_bytes(path, self.limits.max_upload_bytes)
        if size > self.limits.max_upload_bytes:
            raise DataError(
                f"{path.name!r} has {size / 1e6:,.0f} MB or more; this public demo takes at most "
                f"{self.limits.max_upload_bytes / 1e6:,.0f} MB."
            )

    def compare(self, text: str, run_id: str, text_pair: str | None = None) -> dict[str, Any]:
        """One text in every variant that the run has."""
        texts = self._checked_texts(text, text_pair)
        return self.worker.run("compare", str(self.find(run_id).folder), *texts)

    def _checked_texts(self, text: Any, text_pair: Any) -> tuple[str, str | None]:
        self.check_text(text)
        if text_pair in (None, ""):
            return text, None
        self.check_text(text_pair)
        return text, text_pair

    def check_text(self, text: Any) -> None:
        """Raise DataError for a text that is empty, not Unicode, or longer than a public demo allows."""
        if not isinstance(text, str) or not text.strip():
            raise DataError("The text is empty; type a sentence to classify.")
        check_text(text)
        if self.limits is not None and len(text) > self.limits.max_characters:
            raise DataError(
                f"The text has {len(text):,} characters; this public demo takes at most "
                f"{self.limits.max_characters:,}."
            )


def _or_none(read: Any) -> Any:
    try:
        return read()
    except RunError:
        return None
