"""Adapters and merged models pushed to a loopback hub by one process and loaded from there by another."""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_write_server import DROP, WritableHub
from offline import NOBODY
from processes import answer, python
from run_files import reseal

from peft_core.errors import RunError
from peft_core.export.hub.account import translate_hub_errors
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows

TOKEN, BASE = "hf_AliceMayWriteHere", "someone/tiny-base"
PUSH = """
import json, logging, resource, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from pathlib import Path
from huggingface_hub.utils import logging as hub_logging
from peft_core.errors import PeftCoreError
from peft_core.export.hub.push import push
from peft_core.export.hub.account import check_token
from peft_core.runs import Run
hub_logging.set_verbosity_debug()
cases = []
for call in json.load(sys.stdin):
    progress_calls, stop = [], call.pop("stop", None)

    def progress(share, what):
        progress_calls.append((share, what))
        if stop and what.startswith(stop):
            raise KeyboardInterrupt

    try:
        if call.pop("full_disk", False):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if "run" in call:
            answer = push(Run(Path(call.pop("run"))), **call, progress=progress)
        else:
            answer = check_token(**call)
        case = {"value": answer}
    except BaseException as error:
        case = {"message": f"{error}", "ours": isinstance(error, PeftCoreError), "kind": type(error).__name__}
        traceback.print_exc()
    cases.append({**case, "progress": progress_calls})
print(json.dumps(cases))
"""
LOAD = """
import json, os, re, sys
import numpy as np, pandas as pd, torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError

def load(source, rows, token):
    if token:
        try:
            hf_hub_download(source, "README.md")
            raise SystemExit("a private repository was handed out")
        except RepositoryNotFoundError:
            os.environ["HF_TOKEN"] = token
    with open(hf_hub_download(source, "README.md"), encoding="utf-8") as file:
        code = re.search("```python\\n(.*?)\\n```", file.read(), re.DOTALL)[1]
    head, use = code.split("\\n\\ninputs = ")
    names, logits, answers = {}, [], []
    exec(head, names)
    for _, row in pd.read_parquet(rows).iterrows():
        here = "inputs = " + use.replace('"A text to classify."', repr(row["text"]))
        exec(here.replace('"The second text of the pair."', repr(row.get("text_pair"))), names)
        logits.append(names["logits"][0].tolist())
        answers.append(names["answer"])
    return {"logits": logits, "answers": answers, "libraries": sorted({"peft_core"} & set(sys.modules))}

print()
print(json.dumps({source: load(source, *rest) for source, rest in json.loads(sys.argv[1]).items()}))
"""


@dataclass
class Client:
    """Pushes to one endpoint from fresh processes, with its own home folder and no saved token."""

    endpoint: str
    home: Path

    def ask(self, *calls: dict[str, Any], **changes: str) -> list[dict[str, Any]]:
        """Return what each call returned or raised; check that no token was printed or written."""
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        done = python("-c", PUSH, stdin=json.dumps(calls), **{**settings, **changes})
        assert done.returncode == 0, done.stderr
        for token in {call["token"] for call in calls if len(str(call["token"])) > 8}:
            assert token not in done.stdout + done.stderr
            folders = {self.home, *(Path(call["run"]) for call in calls if "run" in call)}
            for file in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
                assert token.encode() not in file.read_bytes()
        return json.loads(done.stdout.splitlines()[-1])

    def push(self, run: Run, kind: str, repo_id: str, **options: Any) -> dict[str, Any]:
        return self.ask(
            {"run": str(run.folder), "kind": kind, "repo_id": repo_id, "token": TOKEN, **options}
        )[0]


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path) -> Iterator[WritableHub]:
    with WritableHub(tmp_path / "hub") as server:
        server.add_repo("model", BASE, tiny_model)
        server.add_person(TOKEN, "alice", ("alice",))
        yield server


@pytest.fixture
def client(hub: WritableHub, tmp_path: Path) -> Client:
    return Client(hub.endpoint, tmp_path / "home")


def with_hub_base(run: Run, hub: WritableHub, runs_dir: Path) -> Run:
    """Return a copy of a run that names the base model of the hub."""
    copy = Run(shutil.copytree(run.folder, runs_dir / run.run_id))
    commit = hub.find("model", BASE, None).sha
    for name, revision in (("classifier.json", "base_revision"), ("adapter_config.json", "revision")):
        path = copy.adapter / name
        if path.is_file():
            metadata = json.loads(path.read_text(encoding="utf-8"))
            metadata |= {"base_model_name_or_path": BASE, revision: commit}
            path.write_text(json.dumps(metadata), encoding="utf-8")
    reseal(copy.adapter)
    return copy


def call(run: Run, repo_id: str, kind: str = "adapter", token: str = TOKEN, **options: Any) -> dict[str, Any]:
    return {"run": str(run.folder), "kind": kind, "repo_id": repo_id, "token": token, **options}


def assert_refused(case: dict[str, Any], *words: str) -> None:
    assert case.get("ours"), case
    assert "\n" not in case["message"]
    for word in words:
        assert word in case["message"], case


def expected_answers(run: Run) -> list[Any]:
    """Return the answers of the decision rule to the test rows, in the form of the card's code."""
    rows, decision, classifier = load_evaluation_rows(run), DecisionRule.read(run), Classifier.read(run)
    problem_type, labels = classifier.problem_type, classifier.labels
    decided = decision.decide(rows.logits, problem_type)
    if problem_type == REGRESSION:
        return [pytest.approx(number, abs=1e-4) for number in decided]
    unsure = decision.abstains(rows.logits, problem_type)
    label_sets = (
        [[labels[i] for i in np.flatnonzero(row)] for row in decided] if problem_type == MULTI else labels
    )
    answers = label_sets if problem_type == MULTI else [labels[i] for i in decided]
    return [None if doubt else label for doubt, label in zip(unsure, answers, strict=True)]


def test_pushed_model_loads_with_the_code_of_its_card(
    hub: WritableHub,
    client: Client,
    merged_run: Run,
    topics: Run,
    stars: Run,
    pairs: Run,
    train_here: Callable[..., Run],
    tmp_path: Path,
) -> None:
    head_only = train_here(method="head_only", num_train_epochs=1)
    plain = with_hub_base(merged_run, hub, tmp_path / "plain")
    runs = {
        "merged": (plain, "merged"),
        "decided": (with_hub_base(merged_run, hub, tmp_path / "decided"), "adapter"),
        "topics": (with_hub_base(topics, hub, tmp_path), "adapter"),
        "stars": (with_hub_base(stars, hub, tmp_path), "adapter"),
        "pairs": (with_hub_base(pairs, hub, tmp_path), "adapter"),
        "head-only": (with_hub_base(head_only, hub, tmp_path), "adapter"),
        "private": (plain, "adapter"),
    }
    chosen = DecisionRule(temperature=2.5, thresholds=(0.8, 0.2))
    confidences = np.sort(chosen.confidence(load_evaluation_rows(plain).logits, SINGLE))
    middle = float(confidences[len(confidences) // 2 - 1 : len(confidences) // 2 + 1].mean())
    DecisionRule(2.5, (0.8, 0.2), middle).save(runs["decided"][0], ("bad", "good"))
    DecisionRule(0.5, (0.3, 0.5, 0.7)).save(runs["topics"][0], Classifier.read(topics).labels)
    calls = [
        call(run, f"alice/{name}", kind, private=name == "private") for name, (run, kind) in runs.items()
    ]
    for case in client.ask(*calls):
        assert "value" in case, case
    sources = {
        f"alice/{name}": (str(run.evaluation), TOKEN if name == "private" else None)
        for name, (run, _) in runs.items()
    }
    loaded = answer(LOAD, json.dumps(sources), HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "other"))
    for name, (run, _) in runs.items():
        output = loaded[f"alice/{name}"]
        assert not output["libraries"], "stock libraries alone"
        assert np.abs(np.array(output["logits"]) - load_evaluation_rows(run).logits).max() <= 1e-5, name
        assert output["answers"] == expected_answers(run), name
    assert loaded["alice/decided"]["answers"].count(None) == len(confidences) // 2, "the less sure half"


def test_push_uploads_folder_and_card_in_one_commit(
    hub: WritableHub, client: Client, merged_run: Run
) -> None:
    run = merged_run
    push_call = call(run, "Reviews", "merged", private=False)
    case = client.ask(push_call, HF_TOKEN="hf_OfTheMachinesOwner")[0]  # a token that this hub refuses
    assert case["value"]["repo_id"] == "alice/Reviews"
    assert case["value"]["url"] == f"{hub.endpoint}/alice/Reviews"
    commit = hub.find("model", "alice/Reviews", None)
    assert case["value"]["commit"] == commit.sha
    assert not commit.private
    assert [pushed.repo_id for pushed in hub.pushed] == ["alice/Reviews"], "one commit"
    uploaded = {path: file.source.read_bytes() for path, file in commit.files.items()}
    assert uploaded.pop(".gitattributes")
    assert uploaded.pop("README.md").startswith(b"---\nlibrary_name: transformers")
    files = {file.name: file.read_bytes() for file in run.merged.iterdir()}
    del files["manifest.json"]  # it belongs to the run folder, not to the upload
    assert uploaded == files
    shares = [share for share, _ in case["progress"]]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0.0, 1.0)
    assert not (run.merged / "README.md").exists()


def test_push_is_private_and_contains_no_local_paths(
    hub: WritableHub, client: Client, finished_run: Run, tiny_model: Path
) -> None:
    assert "value" in client.push(finished_run, "adapter", "alice/own")
    commit = hub.find("model", "alice/own", None)
    assert commit.private
    for path, file in commit.files.items():
        assert str(tiny_model.parent).encode() not in file.source.read_bytes(), path
    pushed_config = json.loads(commit.files["adapter_config.json"].source.read_text(encoding="utf-8"))
    assert pushed_config["base_model_name_or_path"] == tiny_model.name
    local_config = (finished_run.adapter / "adapter_config.json").read_text(encoding="utf-8")
    assert json.loads(local_config)["base_model_name_or_path"] == str(tiny_model)


def test_push_with_overwrite_replaces_all_files(hub: WritableHub, client: Client, merged_run: Run) -> None:
    first = call(merged_run, "alice/both", "adapter")
    second = call(merged_run, "alice/both", "merged")
    cases = client.ask(first, second, {**second, "overwrite": True}, {**second, "overwrite": True})
    assert "value" in cases[0]
    assert_refused(cases[1], "'alice/both' exists already", "another name")
    assert set(hub.find("model", "alice/both", None).files) == {
        ".gitattributes",
        "README.md",
        *(file.name for file in merged_run.merged.iterdir() if file.name != "manifest.json"),
    }
    assert hub.pushed[1].deleted == ["adapter_config.json", "adapter_model.safetensors", "classifier.json"]
    assert cases[3]["value"]["commit"] == cases[2]["value"]["commit"], "nothing had changed"
    assert len(hub.pushed) == 2
    hub.publish("alice/open", {"config.json": b"{}"}, private=False)
    before = hub.find("model", "alice/open", None).sha
    assert_refused(client.push(merged_run, "merged", "alice/open", overwrite=True), "'alice/open' is public")
    assert hub.find("model", "alice/open", None).sha == before


def test_push_with_an_invalid_token_or_name_is_refused(
    hub: WritableHub, client: Client, own_run: Run
) -> None:
    fine = {"role": "fineGrained", "fineGrained": {"global": [], "scoped": []}}
    fine["fineGrained"]["scoped"] = [
        {"entity": {"type": "org", "name": "team"}, "permissions": ["repo.content.read", "repo.write"]},
        {"entity": {"type": "user", "name": "alice"}, "permissions": ["repo.content.read"]},
        {"entity": {"type": "model", "name": "alice/only"}, "permissions": ["repo.write"]},
    ]
    orgs = ({"name": "team", "roleInOrg": "write"}, {"name": "watched", "roleInOrg": "read"})
    hub.add_person("hf_ReadsOnly", "alice", access={"role": "read"})
    hub.add_person("hf_FineGrained", "alice", ("team", "alice/only"), access=fine, orgs=orgs)
    hub.add_person("hf_oauth_Visitor", "bob", ("bob", "team"), access={}, orgs=orgs)
    hub.add_person("hf_oauth_NoScope", "carol", access={})
    hub.publish("alice/only", {"config.json": b"{}"}, private=True)
    bad_names = ["", "a/b/c", "alice/has space", "alice/--", "alice/x.git", "alice/é", "a" * 97, "../up"]
    bad_tokens = ["", " ", "hf_two\nlines: x", "hf_über_and_out", None]
    cases = client.ask(
        *(call(own_run, name) for name in bad_names),
        *(call(own_run, "alice/x", token=token) for token in bad_tokens),
        HF_TOKEN=TOKEN,
    )
    for case in cases[: len(bad_names)]:
        assert_refused(case, "is not a valid repository name")
    for case in cases[len(bad_names) :]:
        assert_refused(case, "token is empty or has invalid characters")
    assert hub.requests == [], "nothing was asked"
    calls = {
        "unknown": call(own_run, "alice/x", token="hf_NobodyKnowsMe"),
        "reads": call(own_run, "alice/x", token="hf_ReadsOnly"),
        "other": call(own_run, "somebody/x"),
        "fine": call(own_run, "alice/x", token="hf_FineGrained"),
        "watched": call(own_run, "watched/x", token="hf_oauth_Visitor"),
        "scope": call(own_run, "carol/x", token="hf_oauth_NoScope"),
        "not merged": call(own_run, "alice/x", kind="merged"),
        "no kind": call(own_run, "alice/x", kind="../adapter"),
        "team": call(own_run, "team/x", token="hf_FineGrained"),
        "only": call(own_run, "alice/only", token="hf_FineGrained", overwrite=True),
        "oauth": call(own_run, "TEAM/y".lower(), token="hf_oauth_Visitor"),
        "who reads": {"token": "hf_ReadsOnly"},
        "who fine": {"token": "hf_FineGrained"},
        "who oauth": {"token": "hf_oauth_Visitor"},
    }
    case = dict(zip(calls, client.ask(*calls.values()), strict=True))
    assert_refused(case["unknown"], "does not know this token")
    assert_refused(case["reads"], "'alice' may only read", "write rights")
    assert_refused(case["other"], "may not write to 'somebody'", "may write to alice")
    assert_refused(case["fine"], "may not write to 'alice'", "team, alice/only")
    assert_refused(case["watched"], "may not write to 'watched'", "bob, team")
    assert_refused(case["scope"], "does not let this token write to 'carol/x'", "rights to create")
    assert_refused(case["not merged"], "merge it first")
    assert_refused(case["no kind"], "no download")
    assert_refused(case["who reads"], "may only read")
    assert case["who fine"]["value"] == {"name": "alice", "namespaces": ["team"], "repos": ["alice/only"]}
    assert case["who oauth"]["value"] == {"name": "bob", "namespaces": ["bob", "team"], "repos": []}
    assert [pushed.repo_id for pushed in hub.pushed] == ["team/x", "alice/only", "team/y"]
    assert not any(hub.exists(name) for name in ("alice/x", "somebody/x", "watched/x", "carol/x"))


def test_push_that_fails_midway_leaves_no_repository(
    hub: WritableHub, client: Client, finished_run: Run
) -> None:
    faults = {
        "whoami": (503, "status 503"),
        "create": (503, "status 503"),
        "preupload": (403, "does not let this token write"),
        "batch": (422, "status 422 (as the test wished)"),
        "validate": (400, "status 400 (as the test wished)"),
        "verify": (404, "any more"),  # before the hub holds the weights, which it asks for once
        "commit": (500, "status 500"),
    }
    calls, words = [], []
    for route, (status, sentence) in faults.items():
        hub.add_person(f"hf_{route}_fails", "alice", ("alice",), faults={route: status})
        calls.append(call(finished_run, f"alice/{route}", token=f"hf_{route}_fails"))
        words.append(sentence)
    for route in ("whoami", "create", "commit"):
        hub.add_person(f"hf_{route}_drops", "alice", ("alice",), faults={route: DROP})
        calls.append(call(finished_run, f"alice/{route}-drops", token=f"hf_{route}_drops"))
        words.append("cannot be reached")
    hub.add_person("hf_busy_token", "alice", ("alice",), faults={"whoami": 429})
    calls.append(call(finished_run, "alice/busy", token="hf_busy_token"))
    words.append("wait a few minutes")
    calls.append(call(finished_run, "alice/stopped", stop="Uploading"))
    *failed, stopped = client.ask(*calls)
    for case, sentence in zip(failed, words, strict=True):
        assert_refused(case, sentence)
    assert stopped["kind"] == "KeyboardInterrupt"
    assert not [options["repo_id"] for options in calls if hub.exists(options["repo_id"])]
    assert hub.pushed == []
    assert ("DELETE", "/api/repos/delete") in hub.requests


def test_failed_push_names_a_repository_that_cannot_be_deleted(
    hub: WritableHub, client: Client, finished_run: Run
) -> None:
    hub.add_person("hf_stuck_token", "alice", ("alice",), faults={"commit": 500, "delete": 500})
    commit_before = hub.publish("alice/kept", {"config.json": b"{}"}, private=True).sha
    new_repo, old_repo = client.ask(
        call(finished_run, "alice/left", token="hf_stuck_token"),
        call(finished_run, "alice/kept", token="hf_stuck_token", overwrite=True),
    )
    assert_refused(new_repo, "status 500", f"is left at {hub.endpoint}/alice/left: delete it by hand")
    assert_refused(old_repo, "status 500")
    assert "delete it" not in old_repo["message"]
    assert hub.find("model", "alice/kept", None).sha == commit_before, "what was there before stays"


@pytest.mark.parametrize("endpoint", [NOBODY, "http://no-such-host.invalid"])
def test_push_without_a_network_is_refused(endpoint: str, finished_run: Run, tmp_path: Path) -> None:
    case = Client(endpoint, tmp_path).push(finished_run, "adapter", "alice/x")
    assert_refused(case, "cannot be reached", "check the network")


def test_push_on_a_full_disk_succeeds(hub: WritableHub, client: Client, finished_run: Run) -> None:
    assert "value" in client.push(finished_run, "adapter", "alice/x", full_disk=True)
    assert hub.exists("alice/x")
    with pytest.raises(RunError, match="The disk is full"), translate_hub_errors("alice/x"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a client that caches files may raise


def test_push_with_xet_uploads_large_files(
    hub: WritableHub, client: Client, merged_run: Run, tmp_path: Path
) -> None:
    push_call = call(merged_run, "alice/xet", "merged")
    case = client.ask(push_call, HF_HUB_DISABLE_XET="0")[0]
    assert case["value"]["commit"] == hub.find("model", "alice/xet", None).sha
    assert len(hub.pushed) == 1
    assert list(hub.pushed[0].large) == ["model.safetensors"]
    weights = merged_run.merged / "model.safetensors"
    fetched = answer(FETCH, str(weights), str(hub.xet_store), str(tmp_path / "again"))
    assert fetched == weights.stat().st_size
    assert (tmp_path / "again").read_bytes() == weights.read_bytes()


FETCH = """
import json, sys
from hf_xet import XetFileInfo, XetSession, hash_files
weights, store, target = sys.argv[1:]
info = hash_files([weights])[0]
with XetSession().new_file_download_group(endpoint=f"local://{store}") as group:
    group.start_download_file(XetFileInfo(info.hash, info.file_size), target)
print(info.file_size)
"""
