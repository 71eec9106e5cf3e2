"""What the page and the endpoints can ask for, in JSON types, over the runs, the worker and the limits."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_core import runs
from peft_core.access.visitors import LOCAL_USER, Visitor
from peft_core.certificate import certificate_of_merged
from peft_core.config import TrainConfig
from peft_core.data.characters import check_text
from peft_core.data.unpacking import unpacked_bytes
from peft_core.data.uploads import hide_upload_folders
from peft_core.errors import ConfigError, DataError, RunError
from peft_core.export.archives import folder_of, zip_of
from peft_core.export.hub.push import push as push_to_hub
from peft_core.inference.classifier import Classifier
from peft_core.launcher import Launcher
from peft_core.limits import Limits, check_names_no_files, check_offered, settings_with_files
from peft_core.presets import with_absolute_paths
from peft_core.progress import Progress
from peft_core.run_access import RunAccess
from peft_core.runs import Run
from peft_core.runs.checkpoints import can_continue
from peft_core.visitor_uploads import TOKEN_NEEDED, VisitorUploads
from peft_core.worker import Report, Worker, in_thread


@dataclass(frozen=True)
class Workbench:
    """What the page and the endpoints ask for.

    Attributes:
        worker: answers clicks.
        jobs: works for minutes, so that a job holds up nobody's click.
        files: reads data files; where strangers come, a worker of its own.
        limits: None on a person's own machine, set where strangers come.
        access: the runs that whoever asks now may read and change.
        uploads: the uploads of whoever asks now.
    """

    launcher: Launcher
    worker: Worker
    jobs: Worker
    files: Worker
    limits: Limits | None
    access: RunAccess
    uploads: VisitorUploads

    @classmethod
    def open(
        cls,
        runs_dir: Path,
        *,
        public: bool = False,
        visitor: Callable[[], Visitor] = lambda: LOCAL_USER,
        examples: Collection[str] = (),
    ) -> "Workbench":
        """A workbench over a folder of runs; nothing is started or written yet.

        Args:
            runs_dir: the folder.
            public: whether strangers come.
            visitor: returns who asks now.
            examples: ids of runs that every visitor may read.
        """
        limits = Limits() if public else None
        worker = Worker(limits.answer_seconds if limits else None)
        jobs = Worker(limits.job_seconds if limits else None)
        files = Worker(limits.reading_seconds, limits.reading_bytes) if limits else worker
        launcher = Launcher(runs_dir, limits)
        access = RunAccess(launcher.runs_dir, visitor, frozenset(examples))
        uploads = VisitorUploads(launcher.runs_dir, visitor, limits, files)
        return cls(launcher, worker, jobs, files, limits, access, uploads)

    @property
    def runs_dir(self) -> Path:
        return self.launcher.runs_dir

    def start(self) -> None:
        """Warm the workers, remove what dead processes left half-written, and take up runs that wait."""
        runs.sweep(self.runs_dir)
        self.worker.warm()
        self.files.warm()
        self.launcher.resume_queue()

    def config(self, settings: Mapping[str, Any]) -> TrainConfig:
        """Checked settings; ConfigError for one that is wrong, or that whoever asks may not give."""
        config = TrainConfig.from_dict(self.uploads.resolve(settings))
        if self.limits is not None:
            check_offered(config, self.uploads.folder)
            self.limits.check(config, self.uploads.rows(config.dataset_name))
        elif not self.access.visitor().may_name_files:
            check_names_no_files(config, self.uploads.folder)
        return config

    def train(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`{run_id, waiting_for}`: the run started, or queued behind the one named.

        `waiting_for` names no run that the visitor may not read.
        """
        visitor, config = self.access.visitor(), self.config(settings)
        if not visitor.owns_all and visitor.owner is None:
            raise ConfigError(TOKEN_NEEDED)
        self.files.run("check", config.to_dict())
        if self.limits is not None:
            self.limits.check_seconds(self.worker.run("cost", config.to_dict())["seconds"])
        ahead = self.launcher.current()
        run = self.launcher.submit(with_absolute_paths(config), owner=visitor.owner)
        return {"run_id": run.run_id, "waiting_for": self._name_for_visitor(ahead) if ahead else None}

    def _name_for_visitor(self, run: Run) -> str:
        return run.run_id if self.access.may_read(run) else "a run of another visitor"

    def train_again(self, run_id: str) -> dict[str, Any]:
        """As `train`, with the settings of an earlier run: on its data and base model as they are now."""
        return self.train(self.settings_of(run_id).to_dict())

    def current_run(self) -> Run | None:
        """The run that trains now or comes next, if the visitor may read it."""
        run = self.launcher.current()
        return run if run is not None and self.access.may_read(run) else None

    def find(self, run_id: str) -> Run:
        """A run to read; RunError for one that whoever asks may not read, as for an unknown id."""
        return self.access.find(run_id)

    def settings_of(self, run_id: str) -> TrainConfig:
        """The settings of a run as whoever asks may give them."""
        return TrainConfig.from_dict(hide_upload_folders(self.find(run_id).config().to_dict()))

    def find_own(self, run_id: str) -> Run:
        """A run to change; RunError for one that whoever asks may not change."""
        return self.access.find_own(run_id)

    def list_runs(self) -> list[Run]:
        """The runs that whoever asks may read, the newest first."""
        return self.access.list_runs()

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
        description = {
            "run_id": run.run_id,
            **state.to_dict(),
            "settings": config.to_dict() if config else None,
            "may_change": self.access.owns(run),
            "can_continue": state.status in (runs.FAILED, runs.KILLED) and can_continue(run),
            "has_adapter": run.has_adapter,
            "merged": certificate_of_merged(run) is not None,
            "damage": damage,
            "usable": run.usable() if damage else [],
            "result": result.to_dict() if result else None,
        }
        return hide_upload_folders(description)

    def stop(self, run_id: str) -> dict[str, Any]:
        """`{run_id, status}` after the run was asked to stop."""
        return self._status_of(self.launcher.stop(self.find_own(run_id).run_id))

    def delete(self, run_id: str) -> dict[str, Any]:
        """`{run_id, deleted}` of a run that was removed with all its files.

        Raises RunError if it has not ended.
        """
        self.launcher.delete(self.find_own(run_id).run_id)
        return {"run_id": run_id, "deleted": True}

    def resume(self, run_id: str) -> dict[str, Any]:
        """`{run_id, status}` of a run that goes on from its newest checkpoint."""
        return self._status_of(self.launcher.resume(self.find_own(run_id).run_id))

    def evaluate(self, run_id: str) -> dict[str, Any]:
        """As `resume`, of a run whose newest checkpoint is evaluated as it is, without another step."""
        run = self.find_own(run_id)
        return self._status_of(self.launcher.resume(run.run_id, evaluate_only=True))

    @staticmethod
    def _status_of(run: Run) -> dict[str, Any]:
        return {"run_id": run.run_id, "status": run.state().status}

    def count(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Exact parameter counts; no weights are read."""
        return self.worker.run("count", self.config(settings).to_dict())

    def cost(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """As `count`, with the seconds that training is forecast to take."""
        return self.worker.run("cost", self.config(settings).to_dict())

    def describe_model(self, name: str, revision: str | None = None) -> dict[str, Any]:
        """A base model's kind, size, labels and modules, from its configuration alone."""
        config = self.config({"model_name_or_path": name, "revision": revision or None})
        return self.worker.run("describe_model", config.model_name_or_path, config.revision)

    def inspect(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What can be said of the data before training: columns, guesses, splits, tokens, findings."""
        return hide_upload_folders(self.files.run("inspect", self.config(settings).to_dict()))

    def upload(self, paths: Sequence[Path]) -> str:
        """Files as a data set of whoever asks; returns its `dataset_name`. Raises DataError."""
        return self.uploads.store(paths, self._data_in_use(list_all=self.limits is None))

    def _data_in_use(self, *, list_all: bool) -> set[str]:
        """Data sets of all runs, or of those alone that wait or train."""
        listed = runs.list_runs(self.runs_dir)
        wanted = (run for run in listed if list_all or run.state().status not in runs.ENDED)
        configs = (_or_none(run.config) for run in wanted)
        return {config.dataset_name for config in configs if config is not None}

    def merge(self, run_id: str) -> Iterator[Report]:
        """Reports, the last with the certificate."""
        return self.worker.stream("merge", str(self.find_own(run_id).folder))

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
        folder = str(self.find(run_id).folder)
        self._check_bytes(path)
        return self.files.run("look_at_file", folder, str(path), sheet_name or None, header_row or None)

    def predict_file(
        self, path: Path, run_id: str, variant: str, columns: Mapping[str, Any], name: str | None = None
    ) -> Iterator[Report]:
        """Reports, the last with `path` and what the written file holds; `cancel(name)` ends it.

        `columns` names `text`, and `text_pair` and `label` where there are any; `exact` keeps to float32.
        `sheet_name` and `header_row` choose a table as the settings of these names do.
        """
        folder = str(self.find(run_id).folder)
        self._check_bytes(path)
        names = ("text", "text_pair", "label", "sheet_name", "header_row")
        request = {name: columns.get(name) or None for name in names} | {"exact": bool(columns.get("exact"))}
        request["most_rows"] = self.limits.max_upload_rows if self.limits else None
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
        self.worker.run("save_rule", str(self.find_own(run_id).folder), dict(rule))

    def make(self, kind: str, run_id: str, **options: Any) -> Iterator[Report]:
        """Reports while `onnx` (option max_drop), `embeddings`, a `page` or a `script` is made; the last has
        its report, and the zip is `taken`'s."""
        if kind == "script":  # the training rows are not for everyone who comes by
            options["rows"] = self.limits is None
        return self.jobs.stream("make", str(self.find_own(run_id).folder), kind, options)

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
        run, asked = self.find_own(run_id), {"private": private, "overwrite": overwrite}

        def upload(progress: Progress) -> dict[str, str]:
            with run.detect_deletion():
                return push_to_hub(run, kind, repo_id, token, progress=progress, **asked)

        return in_thread(upload)

    def code(self, run_id: str, kind: str, url: str, auth: bool = False) -> str:
        """The run as a `script`, or the app's API as `python`, `curl` or `mcp` with its id filled in."""
        return hide_upload_folders(self.worker.run("code", str(self.find(run_id).folder), kind, url, auth))

    def training_code(self, settings: Mapping[str, Any], kind: str, url: str, auth: bool = False) -> str:
        """As `code`, of settings that are not trained yet; the code logs in if they name local files."""
        config = self.config(settings)
        login = auth or bool(settings_with_files(config, self.uploads.folder))
        return hide_upload_folders(self.worker.run("training_code", config.to_dict(), kind, url, login))

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
