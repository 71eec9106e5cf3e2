"""Check the pinned versions for known vulnerabilities: `make audit`, with the path of pip-audit as argument.

An index without vulnerability data reports each package as unknown, and pip-audit then finds nothing. So
packages that could not be checked are counted, and the audit passes only if there are none.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[2] / "pre-requirements.txt"
NO_NETWORK = "No audit: the list of vulnerabilities cannot be reached. Try again with a network."


def main(pip_audit: str) -> int:
    """Return 0 without known vulnerabilities, 1 with some, 2 if the check could not be made."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text(PINS.read_text(encoding="utf-8") + _torch(), encoding="utf-8")
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        command = [pip_audit, *options, "-r", str(pins)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip() or "pip-audit said nothing").splitlines()[-1]
        sys.stderr.write(f"{NO_NETWORK} ({last})\n")
        return 2
    words, status = report(packages)
    sys.stdout.write(words)
    return status


def report(packages: list[dict[str, Any]]) -> tuple[str, int]:
    """Return a summary of the audit and the exit status.

    Args:
        packages: the `dependencies` of pip-audit's JSON output.
    """
    vulnerable = [package for package in packages if package.get("vulns")]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {', '.join(vuln['id'] for vuln in package['vulns'])}"
        for package in vulnerable
    ]
    looked_up = len(packages) - len(unknown)
    lines.append(f"{len(vulnerable)} of {looked_up} packages that were looked up have known vulnerabilities.")
    if unknown or not packages:
        lines.append(
            f"{len(unknown)} packages could not be looked up, so nothing is known of them: "
            f"{', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''}. Try again with another network."
        )
    return "\n".join(lines) + "\n", 1 if vulnerable else 2 if unknown or not packages else 0


def _torch() -> str:
    """Return a pin of the installed torch, which is not pinned, without its local build label."""
    return f"torch=={version('torch').partition('+')[0]}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
