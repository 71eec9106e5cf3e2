"""An exported page in a real browser: it predicts as Python does, sends nothing and verifies its files."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import copy_of
from exported_runs import refuse_int8
from page_server import SEND_AND_WAIT, Folder, serve_folder
from playwright.sync_api import Browser, Page, Route, expect
from run_files import change_json
from tiny import COMMON_WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from peft_core.data.labelled import truncate_text
from peft_core.export.page.weblibrary import LIBRARY_URL, STATIC_FOLDER, library_files, read_record
from peft_core.export.page.webpage import export_page
from peft_core.inference.classifier import Classifier
from peft_core.inference.decision import DecisionRule
from peft_core.problem_types import MULTI, REGRESSION, SINGLE
from peft_core.runs import Run
from peft_core.runs.evaluation_rows import load_evaluation_rows

TOLERANCE = 0.01  # of a probability: the rounding of two machines can tip a value over a step of int8
SCRIPT, LOADER, WASM = (file["name"] for file in read_record()["files"])
HOSTILE = "<img src=x onerror=\"document.title='broken'\">"
ODD = [
    "x",
    "good " * 300,
    "Éclair naïve café, really?!",
    "漢字 と かな",
    "[SEP] good [MASK] bad",
    "a\tb\nc\u200bd",
    "\N{GRINNING FACE} ﬁne ²",
    "É" * 12_000 + " good",
]
READY, ERROR = "#classify:enabled", "#error"
LOGITS = """async (rows) => {
  const { classifier } = await (await import("./page.js")).ready;
  const found = [];
  for (const [text, pair] of rows) found.push(Array.from((await classifier.logits(text, pair)).raw));
  return found;
}"""
DECIDE = """async ([rows, task, decision]) => {
  const { decide } = await import("/decision.js");
  return rows.map((row) => decide(row, task, decision));
}"""
ENCODE = """async ([rows, length]) => {
  const { env, AutoTokenizer } = await import("/transformers.min.js");
  const { encode } = await import("/tokens.js");
  Object.assign(env, { allowLocalModels: true, allowRemoteModels: false, localModelPath: "/" });
  const tokenizer = await AutoTokenizer.from_pretrained("tokenizer");
  return rows.map(([text, pair]) => encode(tokenizer, text, pair, length));
}"""
Visit = Callable[..., tuple[Page, Folder]]


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Return a function that serves a folder and opens its page; an uncaught page error fails the test."""
    errors: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_folder(
            folder: Path, wait: str = READY, prepare: Callable[[Page], None] = lambda page: None, **view: Any
        ) -> tuple[Page, Folder]:
            context = chromium.new_context(**view)
            stack.callback(context.close)
            page = context.new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            prepare(page)
            served = stack.enter_context(serve_folder(folder))
            page.goto(served.url)
            expect(page.locator(wait)).to_be_visible(timeout=30_000)
            return page, served

        yield open_folder
    assert not errors


def page_folder(run: Run, library: Path, **options: Any) -> Path:
    return Path(export_page(run.folder, library=library, **options)["folder"])


def python_logits(folder: Path, rows: list[tuple[str, str | None]], max_length: int) -> np.ndarray:
    """Return outputs of the page's ONNX file in Python, one text at a time as the page does."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = next((folder / "model/onnx").iterdir())
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    logits = []
    for row in rows:
        sides = [truncate_text(text, max_length) for text in row if text is not None]
        encoded = tokenizer(*sides, truncation=True, max_length=max_length, return_tensors="np")
        logits.append(session.run(["logits"], {name: encoded[name].astype(np.int64) for name in names})[0][0])
    return np.stack(logits)


def test_page_matches_python_predictions(each_task: Run, tmp_path: Path, library: Path, visit: Visit) -> None:
    run = copy_of(each_task, tmp_path / "runs")
    problem_type, rows, rule = run.result()["problem_type"], load_evaluation_rows(run), DecisionRule.read(run)
    texts = [*rows.texts, *ODD]
    pairs = [*rows.pairs, *reversed(ODD)] if rows.pairs else [None] * len(texts)
    inputs = list(zip(texts, pairs, strict=True))
    folder = page_folder(run, library)
    page, _ = visit(folder)
    outputs = np.array(page.evaluate(LOGITS, inputs))
    expected = python_logits(folder, inputs, Classifier.read(run).max_length)
    difference = rule.probabilities(outputs, problem_type) - rule.probabilities(expected, problem_type)
    assert np.abs(difference).max() <= TOLERANCE
    if problem_type != REGRESSION:
        decided = [rule.decide(logits, problem_type)[: len(rows)] for logits in (outputs, expected)]
        assert np.array_equal(*decided)


def test_page_with_fp32_model_matches_python_logits(own_export: Run, library: Path, visit: Visit) -> None:
    refuse_int8(own_export)
    folder = page_folder(own_export, library)
    rows = [(text, None) for text in ODD]
    page, _ = visit(folder)
    outputs = np.array(page.evaluate(LOGITS, rows))
    assert np.abs(outputs - python_logits(folder, rows, 64)).max() < 1e-5


def _decisions(problem_type: str) -> list[DecisionRule]:
    plain = [DecisionRule(), DecisionRule(temperature=2.5, abstain_below=0.7)]
    return plain if problem_type == REGRESSION else [*plain, DecisionRule(0.8, (0.2, 0.5, 0.9), 0.4)]


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_page_decision_matches_decision_rule(problem_type: str, visit: Visit) -> None:
    rng = np.random.default_rng(0)
    hard = [[0, 0, 0], [1000, -1000, 0], [-800, -800, -800], [2, 2, -2]]
    logits = np.concatenate([hard, rng.normal(0, 2, (200, 3))])[:, : 1 if problem_type == REGRESSION else 3]
    page, served = visit(STATIC_FOLDER, wait="body")
    page.goto(f"{served.url}/page.css")  # a document without a content security policy
    for rule in _decisions(problem_type):
        settings = {"temperature": rule.temperature, "thresholds": list(rule.thresholds)}
        settings["abstain_below"] = rule.abstain_below
        decisions = page.evaluate(DECIDE, [logits.tolist(), problem_type, settings])
        abstains, confidence = rule.abstains(logits, problem_type), rule.confidence(logits, problem_type)
        assert [row["abstains"] for row in decisions] == abstains.tolist()
        assert np.allclose([row["confidence"] for row in decisions], confidence, atol=1e-12)
        expected = rule.decide(logits, problem_type)
        if problem_type == REGRESSION:
            assert [row["value"] for row in decisions] == expected.tolist()
            continue
        shares = rule.probabilities(logits, problem_type)
        assert np.allclose([row["shares"] for row in decisions], shares, atol=1e-12)
        labels = [[label] for label in expected] if problem_type == SINGLE else map(np.flatnonzero, expected)
        assert [row["chosen"] for row in decisions] == [list(row) for row in labels]


def _byte_level(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer like RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", model_input_names=names
    )


def _unigram(words: list[str]) -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer like XLM-R's that truncates on the left."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", truncation_side="left"
    )


@pytest.mark.parametrize("kind", ["word_piece", "byte_level", "unigram"])
def test_page_tokenization_and_truncation_match_python(
    kind: str, tiny_model: Path, library: Path, tmp_path: Path, visit: Visit
) -> None:
    words = [COMMON_WORDS, *COMMON_WORDS.split()]
    make = {"byte_level": _byte_level, "unigram": _unigram}
    tokenizer = make[kind](words) if kind in make else AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for path in (STATIC_FOLDER / "tokens.js", library / SCRIPT):
        shutil.copy(path, tmp_path)
    texts = [*ODD[:7], "the food was good", "very " * 9]
    rows = [(text, pair) for text in texts for pair in (None, *texts)]
    page, _ = visit(tmp_path, wait="body")
    encodings = page.evaluate(ENCODE, [rows, 17])
    for (text, pair), encoding in zip(rows, encodings, strict=True):
        sides = [text] if pair is None else [text, pair]
        expected = tokenizer(*sides, truncation=True, max_length=17, return_token_type_ids=True)
        untruncated = tokenizer(*sides, verbose=False)["input_ids"]
        assert encoding["ids"] == expected["input_ids"], (text, pair)
        if "token_type_ids" in tokenizer.model_input_names:
            assert encoding["types"] == expected["token_type_ids"], (text, pair)
        assert encoding["cut"] == (len(untruncated) > 17)


def test_page_requests_no_other_host_and_nothing_once_ready(
    own_export: Run, library: Path, visit: Visit
) -> None:
    """The library has its real URL; its requests are fulfilled from the package's files."""
    folder = Path(export_page(own_export.folder)["folder"])
    files = {file["url"]: library / file["name"] for file in library_files()}
    rerouted, requests = [], []

    def reroute(route: Route) -> None:
        rerouted.append(route.request.url)
        route.fulfill(path=files[route.request.url], headers={"access-control-allow-origin": "*"})

    def prepare(page: Page) -> None:
        page.context.on("request", lambda request: requests.append(request.url))
        page.route(f"{LIBRARY_URL}**", reroute)

    page, served = visit(folder, prepare=prepare)
    assert sorted(rerouted) == sorted(files)
    allowed = (f"{served.url}/", *files, f"blob:{served.url}/", "data:")
    assert [url for url in requests if not url.startswith(allowed)] == []
    counts = len(requests), len(served.requested_paths)
    page.fill("#text", "The food was awful and the waiter rude.")
    page.click("#classify")
    expect(page.locator("#answer")).to_have_text("bad")
    assert (len(requests), len(served.requested_paths)) == counts
    attempts = """async (urls) => Promise.all(urls.map((url) => fetch(url).then(() => "sent", () => "no")))"""
    assert page.evaluate(attempts, [served.url, f"{served.url}/page.json?text=secret", *files]) == ["no"] * 5
    assert page.evaluate(SEND_AND_WAIT, served.url) == ["connect-src", "img-src"]
    assert len(served.requested_paths) == counts[1] and len(rerouted) == 3


def _tamper(path: Path) -> None:
    """Change a file but not its size; a script sets `globalThis.evil` if it runs."""
    content = path.read_bytes()
    evil = b"globalThis.evil = 1;" if path.suffix in (".js", ".mjs") else bytes([content[0] ^ 1])
    path.write_bytes(evil + content[len(evil) :])


@pytest.mark.parametrize(
    "name", [f"vendor/{SCRIPT}", f"vendor/{LOADER}", f"vendor/{WASM}", "model/onnx/model_quantized.onnx"]
)
def test_page_with_tampered_file_shows_error(name: str, own_export: Run, library: Path, visit: Visit) -> None:
    folder = page_folder(own_export, library)
    _tamper(folder / name)
    page, _ = visit(folder, wait=ERROR)
    file_name = name.removeprefix("vendor/")
    expect(page.locator(ERROR)).to_have_text(
        f"{file_name} is not the file that this page was made with (its checksum differs), so it is not used."
    )
    assert page.evaluate("globalThis.evil") is None
    expect(page.locator("#classify")).to_be_disabled()


def test_page_with_tampered_remote_library_shows_error(
    own_export: Run, library: Path, tmp_path: Path, visit: Visit
) -> None:
    """The library is loaded from another origin, which the exporter chose."""
    for file in read_record()["files"]:
        target = tmp_path / "far" / file["package"] / file["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library / file["name"], target)
    _tamper(next((tmp_path / "far").rglob(SCRIPT)))
    with serve_folder(tmp_path / "far") as remote:
        folder = Path(export_page(own_export.folder, library_url=f"{remote.url}/")["folder"])
        page, _ = visit(folder, wait=ERROR)
    expect(page.locator(ERROR)).to_contain_text(f"{SCRIPT} is not the file")
    assert f"/{read_record()['files'][0]['package']}/dist/{SCRIPT}" in remote.requested_paths
    assert page.evaluate("globalThis.evil") is None


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda folder: (folder / "model/tokenizer.json").unlink(), "the server answered 404"),
        (lambda folder: (folder / "page.json").unlink(), "put the whole folder on the server"),
        (
            lambda folder: (folder / "model/onnx/model_quantized.onnx").write_text("version https://git-lfs"),
            "model_quantized.onnx is not the file",
        ),
        (lambda folder: shutil.rmtree(folder / "vendor"), f"{SCRIPT} could not be loaded (no connection)"),
    ],
)
def test_page_with_missing_file_shows_error(
    change: Callable[[Path], Any], words: str, own_export: Run, library: Path, visit: Visit
) -> None:
    folder = page_folder(own_export, library, library_url="http://127.0.0.1:9/")
    change(folder)
    page, _ = visit(folder, wait=ERROR)
    expect(page.locator(ERROR)).to_contain_text(words)
    expect(page.locator("#progress")).to_be_hidden()


def test_page_without_web_crypto_asks_for_https(own_export: Run, library: Path, visit: Visit) -> None:
    without = "Object.defineProperty(crypto, 'subtle', { value: undefined })"
    page, _ = visit(
        page_folder(own_export, library), wait=ERROR, prepare=lambda page: page.add_init_script(without)
    )
    expect(page.locator(ERROR)).to_contain_text("https or localhost")


def test_page_opened_as_local_file_names_a_server_command(own_export: Run, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto((Path(export_page(own_export.folder)["folder"]) / "index.html").as_uri())
    expect(page.locator("#unserved")).to_be_visible()
    expect(page.locator("#unserved")).to_contain_text("python -m http.server")
    page.close()


def test_page_classifies_texts_and_shows_notes(own_export: Run, library: Path, visit: Visit) -> None:
    """With the library beside the page, no request goes to another host."""
    requests: list[str] = []
    folder = page_folder(own_export, library)
    page, served = visit(
        folder, prepare=lambda page: page.on("request", lambda request: requests.append(request.url))
    )
    assert {f"/vendor/{name}" for name in (SCRIPT, LOADER, WASM)} <= set(served.requested_paths)
    assert not [url for url in requests if not url.startswith((f"{served.url}/", "blob:", "data:"))]
    expect(page.locator("#unserved")).to_be_hidden()
    page.fill("#text", "Excellent and wonderful, the best pizza.")
    page.press("#text", "Control+Enter")
    expect(page.locator("#answer")).to_have_text("good")
    shares = [float(words) for words in page.locator("#shares b").all_inner_texts()]
    assert page.locator("#shares span").all_inner_texts() == ["bad", "good"]
    assert sum(shares) == pytest.approx(1, abs=0.002) and shares[1] > 0.5
    expect(page.locator("#took")).to_contain_text("ms on this machine")
    page.fill("#text", "   ")
    page.click("#classify")
    expect(page.locator(ERROR)).to_have_text("The text is empty; type a sentence to classify.")
    page.fill("#text", "awful " * 400)
    page.click("#classify")
    expect(page.locator("#note")).to_have_text("Only the first 64 tokens were read.")
    expect(page.locator(ERROR)).to_be_hidden()
    page.fill("#text", "漢字")
    page.click("#classify")
    expect(page.locator("#note")).to_contain_text("does not know any of these characters")
    text = page.locator(".example").first.inner_text()
    page.locator(".example").first.click()
    expect(page.locator("#note")).to_be_hidden()
    assert page.input_value("#text") == text


def test_page_of_pair_run_requires_both_texts(
    exported_tasks: dict[str, Run], library: Path, tmp_path: Path, visit: Visit
) -> None:
    page, _ = visit(page_folder(copy_of(exported_tasks["pairs"], tmp_path / "runs"), library))
    page.fill("#text", "How was the food?")
    page.fill("#pair", " ")
    page.click("#classify")
    expect(page.locator(ERROR)).to_contain_text("The second text is empty")
    page.fill("#pair", "It was terrible.")
    page.click("#classify")
    expect(page.locator("#answer")).to_have_text("bad")


def test_page_abstains_below_threshold(own_export: Run, library: Path, visit: Visit) -> None:
    DecisionRule(abstain_below=0.9999).save(own_export, ("bad", "good"))
    page, _ = visit(page_folder(own_export, library))
    page.fill("#text", "The food was awful.")
    page.click("#classify")
    expect(page.locator("#answer")).to_have_text("No answer")
    expect(page.locator("#note")).to_contain_text("is below 0.9999")
    expect(page.locator("#shares .chosen")).to_have_count(0)


def test_page_escapes_labels_in_both_themes_on_narrow_screen(
    own_export: Run, library: Path, visit: Visit
) -> None:
    change_json(own_export, "adapter/classifier.json", id2label={"0": HOSTILE, "1": "good" * 20})
    folder = page_folder(own_export, library)
    page, _ = visit(folder, viewport={"width": 380, "height": 800}, color_scheme="light")
    page.fill("#text", "The food was awful and the waiter rude.")
    page.click("#classify")
    expect(page.locator("#answer")).to_have_text(HOSTILE)
    assert page.locator("img").count() == 0
    assert page.title().startswith("Text classifier: <img src=x")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) != light
    assert HOSTILE not in (folder / "index.html").read_text(encoding="utf-8")
