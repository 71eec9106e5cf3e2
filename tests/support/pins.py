"""Pin what requirements.txt and tests/requirements.txt install, in the installed versions: make pins.

What both install is pinned in the first. torch is omitted: its build depends on the machine. Each list of
pins has a list of the SHA-256 of every file of the pinned versions, for all systems.
"""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
RUNTIME, TESTS = "pre-requirements.txt", "tests/pins.txt"
HASHES = {RUNTIME: "hashes.txt", TESTS: "tests/hashes.txt"}


def requirements(name: str) -> list[Requirement]:
    """Return the requirements in a file of requirements or pins."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("-", "#"))]


def brought_by(roots: list[Requirement]) -> dict[str, str]:
    """Return the installed version of each required package and of its dependencies, by name."""
    versions, visited = {}, set()
    todo = [(requirement, extra) for requirement in roots for extra in ("", *requirement.extras)]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in visited:
            continue
        visited.add((name, extra))
        installed = distribution(name)
        versions[name] = installed.version
        for line in installed.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(needed, more) for more in ("", *needed.extras)]
    return versions


def main() -> int:
    """Rewrite all four files; each list of pins keeps the comment at its start."""
    runtime = brought_by(requirements("requirements.txt"))
    for_tests = brought_by(requirements("tests/requirements.txt"))
    _write(RUNTIME, runtime)
    _write(TESTS, {name: version for name, version in for_tests.items() if name not in runtime})
    for pins, hashes in HASHES.items():
        _write_hashes(pins, hashes)
    return 0


def _write(file: str, versions: dict[str, str]) -> None:
    path = ROOT / file
    comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    pins = [
        f"{distribution(name).metadata['Name']}=={version}"
        for name, version in sorted(versions.items())
        if name != "torch"
    ]
    path.write_text("\n".join([*comment, *pins]) + "\n", encoding="utf-8")


def _write_hashes(pins: str, hashes: str) -> None:
    """Ask the index for the hashes of each pinned version."""
    options = ["--no-deps", "--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
    command = [sys.executable, "-m", "uv", "pip", "compile", *options, "-o", hashes, pins]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    comment = f"# The SHA-256 of every file of the packages in {pins}. `make pins` makes it again.\n"
    listed = (ROOT / hashes).read_text(encoding="utf-8")
    (ROOT / hashes).write_text(comment + listed, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
