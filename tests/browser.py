"""A real Chromium for the tests: the one on this machine, else Playwright's own, else Debian's package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import BrowserContext, Error, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_DRAWN = "(selector) => document.querySelector(selector)?.toDataURL()"
# after the next frame, or a second later in a page that draws none
_NEXT_FRAME = (
    "() => new Promise((done) => { requestAnimationFrame(() => setTimeout(done)); setTimeout(done, 1000); })"
)
_COUNT_ANSWERS = Path(__file__).with_name("count_answers.js")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
MISSING = (
    "No browser: the suite drives a real Chromium and found none, could not fetch Playwright's own, and "
    "could not install Debian's package. Install Chromium, or name it in CHROMIUM, and run make test again."
)


def find_chromium() -> str | None:
    """The path of a Chromium on this machine, or None."""
    asked = os.environ.get("CHROMIUM")
    if asked:
        return asked
    on_path = next((shutil.which(name) for name in NAMES if shutil.which(name)), None)
    return on_path or _playwrights_own()


def install_chromium() -> None:
    """Fetch one: Playwright's own, else Debian's package. Failures are left for the next look to find."""
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False, timeout=600)
    if _playwrights_own() is None and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "chromium"]):
            subprocess.run(command, check=False, timeout=600)


def wait_until_redrawn(page: Page, selector: str, before: str) -> None:
    """Wait until a canvas holds another picture than `before`, which `picture_of` returned."""
    redrawn = f"([selector, before]) => ![undefined, before].includes(({_DRAWN})(selector))"
    page.wait_for_function(redrawn, arg=[selector, before])


def picture_of(page: Page, selector: str) -> str:
    """What a canvas holds, as a data URL; a screenshot would wait for a canvas that is drawn anew."""
    return page.evaluate(_DRAWN, selector)


def fill(page: Page, selector: str, text: str) -> None:
    """Type into a field as a person would: no earlier than a frame after it appeared.

    Gradio renders the fields of a tab when it is opened first, and puts their initial values into them once
    more before the next frame: what a script has typed by then is lost.
    """
    page.locator(selector).wait_for()
    page.evaluate(_NEXT_FRAME)
    page.fill(selector, text)


def count_answers(context: BrowserContext) -> None:
    """Have each page of a context count its unanswered questions, for `wait_for_answers`."""
    context.add_init_script(path=_COUNT_ANSWERS)


def wait_for_answers(page: Page, seconds: float = 120.0) -> None:
    """Return when all that a page asked is answered and shown, and so is what the answers set off.

    Requests alone do not tell: gradio sends all answers in one stream. If an answer comes before the reply
    to its question, the page opens another stream for it, which stays open until the next question.
    """
    page.evaluate(_NEXT_FRAME)
    while page.evaluate("() => window.unanswered() > 0"):
        page.wait_for_function("() => window.unanswered() === 0", timeout=1000 * seconds)
        page.evaluate(_NEXT_FRAME)  # what an answer sets off is asked by then


def _playwrights_own() -> str | None:
    with sync_playwright() as playwright:
        try:
            path = playwright.chromium.executable_path
        except Error:
            return None
    return path if path and os.path.exists(path) else None


def main() -> int:
    """See that there is a browser; 1 and a sentence if there is none."""
    if find_chromium() is None:
        install_chromium()
    found = find_chromium()
    print(f"browser: {found}" if found else MISSING, file=sys.stdout if found else sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
