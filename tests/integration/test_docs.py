"""The documentation is complete and correct: names, links, generated tables, and code.

Each check is a function that returns what is wrong, and is itself tested on a document with that mistake.
"""

import ast
import functools
import importlib
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from processes import ROOT, environment

from benchmarks.doc_tables import read_table, write_table
from peft_core.config import SETTINGS
from peft_core.methods.registry import METHODS

PARSER = MarkdownIt("commonmark").enable("table")
RUN_MARKER = "<!-- run -->"
README_LINES = 150
REPOSITORY_PATH = re.compile(r"app\.py|(?:peft_core|tests|benchmarks|batteries|docs|assets)/[\w./*-]*")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|home|root|mnt|usr)/\w+")
ENVIRONMENT_VARIABLE = re.compile(r'environment(?:\.get\(|\[)"([A-Z_]+)"|"([A-Z_]+)" (?:not )?in environment')


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block of code; `runs` says whether the marker stands before it."""

    language: str
    code: str
    runs: bool


@dataclass(frozen=True)
class Document:
    """A Markdown file, parsed."""

    path: Path

    @functools.cached_property
    def tokens(self) -> list[Token]:
        text = self.path.read_text(encoding="utf-8")
        return PARSER.parse(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL))  # without front matter

    def inline(self) -> Iterator[Token]:
        """Yield the parts of every line of text."""
        for token in self.tokens:
            yield from token.children or ()

    def code_spans(self) -> list[str]:
        return [token.content for token in self.inline() if token.type == "code_inline"]

    def links(self) -> list[str]:
        """Return the targets of links and pictures."""
        targets = [token.attrGet("href") or token.attrGet("src") for token in self.inline()]
        return [str(target) for target in targets if target]

    def anchors(self) -> set[str]:
        """Return the anchor of each heading, as GitHub makes it."""
        anchors: list[str] = []
        for opening, content in zip(self.tokens, self.tokens[1:], strict=False):
            if opening.type == "heading_open":
                words = "".join(token.content for token in content.children or ())
                anchors.append(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
        return {_numbered(anchor, anchors[:i].count(anchor)) for i, anchor in enumerate(anchors)}

    def code_blocks(self) -> list[CodeBlock]:
        blocks = []
        for before, token in zip([None, *self.tokens], self.tokens, strict=False):
            if token.type == "fence":
                runs = before is not None and before.content.strip() == RUN_MARKER
                blocks.append(CodeBlock(token.info.strip(), token.content, runs))
        return blocks


def _numbered(anchor: str, earlier: int) -> str:
    return f"{anchor}-{earlier}" if earlier else anchor


README, SECURITY = Document(ROOT / "README.md"), Document(ROOT / "SECURITY.md")
CONTRIBUTING, CHANGELOG = Document(ROOT / "CONTRIBUTING.md"), Document(ROOT / "CHANGELOG.md")
PAGES = [Document(path) for path in sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [README, SECURITY, CONTRIBUTING, CHANGELOG, *PAGES]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.path.name)


def undocumented(names: Iterable[str], documents: Iterable[Document] = DOCUMENTS) -> list[str]:
    """Return the names that no code span of the documents is, or begins with."""
    spans = [span for document in documents for span in document.code_spans()]
    words = [re.split(r"[\s=]+", span) for span in spans]
    known = {*spans, *(word[0] for word in words), *(" ".join(word[:2]) for word in words)}
    return [name for name in names if name not in known]


def broken_links(document: Document) -> list[str]:
    """Return the relative links to a file or heading that does not exist."""
    broken = []
    for link in document.links():
        name, _, anchor = link.partition("#")
        target = (document.path.parent / name) if name else document.path
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in Document(target).anchors()):
            broken.append(link)
    return broken


def missing_paths(document: Document) -> list[str]:
    """Return the code spans that look like paths of this repository and do not exist."""
    paths = [span for span in document.code_spans() if REPOSITORY_PATH.fullmatch(span)]
    return [path for path in paths if not any(ROOT.glob(path.rstrip("/")))]


def unknown_imports(code: str) -> list[str]:
    """Return what a piece of Python imports from this project that does not exist."""
    unknown = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "peft_core":
            for alias in node.names:
                if not _is_importable(str(node.module), alias.name):
                    unknown.append(f"{node.module}.{alias.name}")
    return unknown


def _is_importable(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or bool(
            importlib.import_module(f"{module}.{name}")
        )
    except ImportError:
        return False


def make_targets() -> list[str]:
    (names,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return names.split()


def command_line_options() -> list[str]:
    sources = (ROOT / "peft_core/ui/options.py", ROOT / "peft_core/cli.py")
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    arguments = [node.args[0] for node in nodes if isinstance(node, ast.Call) and node.args]
    names = [str(node.value) for node in arguments if isinstance(node, ast.Constant)]
    return [name for name in names if re.fullmatch(r"--[a-z-]+", name)]


def environment_variables() -> set[str]:
    sources = [
        ROOT / "app.py",
        ROOT / "peft_core/ui/options.py",
        ROOT / "peft_core/cli.py",
        *(ROOT / "peft_core" / "access").glob("*.py"),
    ]
    pairs = [pair for path in sources for pair in ENVIRONMENT_VARIABLE.findall(path.read_text("utf-8"))]
    return {first or second for first, second in pairs}


def tab_names() -> list[str]:
    sources = sorted((ROOT / "peft_core" / "ui").rglob("*.py"))
    return [name for path in sources for name in re.findall(r'gr\.Tab\("([^"]+)"', path.read_text("utf-8"))]


def packages() -> list[str]:
    return [f"peft_core/{path.parent.name}/" for path in sorted((ROOT / "peft_core").glob("*/__init__.py"))]


@pytest.fixture
def flawed(tmp_path: Path) -> Document:
    """A document with one mistake of each kind."""
    path = tmp_path / "flawed.md"
    path.write_text(
        "# Title `x`\n\n[a](missing.md) [b](#nowhere) [c](#title-x) [d](https://example.org)\n\n"
        "`peft_core/no_such_file.py` `app.py` `--host H` `make run ARGS=1`\n",
        encoding="utf-8",
    )
    return Document(path)


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.path.read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_readme_links_every_document() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in README.links()}
    assert [document.path.name for document in DOCUMENTS[1:] if document.path not in linked] == []


def test_settings_are_documented() -> None:
    assert len(SETTINGS) > 50
    assert undocumented(SETTINGS) == []


def test_methods_are_documented() -> None:
    page = [document for document in PAGES if document.path.name == "methods.md"]
    assert undocumented(METHODS, page) == []
    text = page[0].path.read_text(encoding="utf-8")
    assert [method.label for method in METHODS.values() if method.label not in text] == []


def test_endpoints_are_documented() -> None:
    names = [f"/{function.name}" for function in GENERATE["endpoints"]()]
    assert "/train" in names and "/download" in names
    assert undocumented(names) == []


def test_endpoints_in_generated_page_are_those_registered() -> None:
    """`build_api` registers exactly the public methods of `Endpoints`."""
    tree = ast.parse(GENERATE["API"].read_text(encoding="utf-8"))
    (build,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build_api"]
    registered = {node.attr for node in ast.walk(build) if isinstance(node, ast.Attribute)}
    assert {function.name for function in GENERATE["endpoints"]()} <= registered


def test_command_line_options_are_documented() -> None:
    options = command_line_options()
    assert "--host" in options and "--mcp" in options
    assert undocumented(options) == []


def test_environment_variables_are_documented() -> None:
    variables = environment_variables()
    assert {"AUTH", "RUNS_DIR", "PUBLIC_DEMO", "SPACE_ID"} <= variables
    assert undocumented(variables) == []


def test_make_targets_are_documented_in_contributing() -> None:
    assert undocumented([f"make {target}" for target in make_targets()], [CONTRIBUTING]) == []


@each_document
def test_make_targets_that_a_document_names_exist(document: Document) -> None:
    named = [span.split()[1] for span in document.code_spans() if re.match(r"make [a-z]", span)]
    assert set(named) <= set(make_targets())


def test_tabs_are_headings_of_the_guide() -> None:
    (guide,) = [document for document in PAGES if document.path.name == "guide.md"]
    names = tab_names()
    assert "Train" in names and len(names) > 5
    assert [name for name in names if name.lower().replace(" ", "-") not in guide.anchors()] == []


def test_packages_are_in_the_architecture() -> None:
    page = [document for document in PAGES if document.path.name == "architecture.md"]
    assert undocumented(packages(), page) == []


@pytest.mark.parametrize(("name", "part"), GENERATE["GENERATED"])
def test_generated_part_is_current(name: str, part: str) -> None:
    current = GENERATE["GENERATED"][name, part]()
    assert read_table(ROOT / "docs" / name, part) == current, f"{name} is out of date; run make docs"


@each_document
def test_links_lead_to_files_and_headings(document: Document) -> None:
    assert broken_links(document) == []


@each_document
def test_paths_in_code_spans_exist(document: Document) -> None:
    assert missing_paths(document) == []


@each_document
def test_document_names_no_folder_of_a_machine(document: Document) -> None:
    assert MACHINE_PATH.findall(document.path.read_text(encoding="utf-8")) == []


@each_document
def test_python_blocks_compile_and_import_what_exists(document: Document) -> None:
    for block in document.code_blocks():
        if block.language == "python":
            assert unknown_imports(block.code) == []


def test_documents_have_python_blocks_and_examples_that_run() -> None:
    blocks = [block for document in DOCUMENTS for block in document.code_blocks()]
    assert sum(block.language == "python" for block in blocks) >= 4
    assert sum(block.runs for block in blocks) >= 2
    assert any(block.runs for block in README.code_blocks())


@each_document
def test_example_runs(document: Document, tmp_path: Path) -> None:
    for block in document.code_blocks():
        if block.runs:
            variables = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests/support'}")
            command = [sys.executable, "-W", "ignore", "-c", block.code]
            process = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
            assert process.returncode == 0, process.stderr[-4000:]


def test_broken_links_are_found(flawed: Document) -> None:
    assert broken_links(flawed) == ["missing.md", "#nowhere"]


def test_missing_paths_are_found(flawed: Document) -> None:
    assert missing_paths(flawed) == ["peft_core/no_such_file.py"]


def test_undocumented_names_are_found(flawed: Document) -> None:
    names = ["--host", "make run", "H", "no_such_setting", "make"]
    assert undocumented(names, [flawed]) == ["H", "no_such_setting"]


def test_unknown_imports_are_found() -> None:
    code = "from peft_core.config import TrainConfig, NoSuchName\nfrom peft_core import runs, no_such_module"
    assert unknown_imports(code) == ["peft_core.config.NoSuchName", "peft_core.no_such_module"]
    with pytest.raises(SyntaxError):
        unknown_imports("from peft_core import")


def test_machine_paths_are_found() -> None:
    assert MACHINE_PATH.findall("see /home/me/file, docs/home/x and https://a.org/tmp/x") == ["/home/me"]


def test_write_table_replaces_only_its_own_table(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n", encoding="utf-8")
    write_table(path, "x", "new\nlines")
    assert read_table(path, "x") == "new\nlines"
    assert path.read_text(encoding="utf-8") == "a\n<!-- x -->\nnew\nlines\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="page.md must have <!-- y -->"):
        write_table(path, "y", "new")
