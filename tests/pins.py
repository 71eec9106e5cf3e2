"""Write what requirements.txt and tests/requirements.txt bring, in the installed versions: make pins.

What both bring belongs to the first. torch is left out: which build of it is right depends on the machine.
Beside each list of pins lies one of the SHA-256 of every file of the pinned versions, for all systems.
"""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
RUNTIME, TESTS = "pre-requirements.txt", "tests/pins.txt"
HASHES = {RUNTIME: "hashes.txt", TESTS: "tests/hashes.txt"}


def requirements(name: str) -> list[Requirement]:
    """The lines of a file of requirements or pins."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("-", "#"))]


def brought_by(wanted: list[Requirement]) -> dict[str, str]:
    """The installed version of every package that requirements bring, themselves included, by name."""
    versions, seen = {}, set()
    todo = [(requirement, extra) for requirement in wanted for extra in ("", *requirement.extras)]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        installed = distribution(name)
        versions[name] = installed.version
        for line in installed.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(needed, more) for more in ("", *needed.extras)]
    return versions


def main() -> int:
    """Write all four files anew, the pins below the comment that each begins with."""
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
