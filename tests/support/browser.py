"""Find or install Chromium for the tests: an installed one, else Playwright's, else Debian's package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import BrowserContext, Error, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_DRAWN = "(selector) => document.querySelector(selector)?.toDataURL()"
# Resolves after the next frame, or after one second in a page that draws none.
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
    """Return the path of an installed Chromium, or None."""
    configured = os.environ.get("CHROMIUM")
    if configured:
        return configured
    on_path = next((shutil.which(name) for name in NAMES if shutil.which(name)), None)
    return on_path or _playwrights_own()


def install_chromium() -> None:
    """Install Playwright's Chromium, else Debian's package; call `find_chromium` to see if it worked."""
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False, timeout=600)
    if _playwrights_own() is None and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "chromium"]):
            subprocess.run(command, check=False, timeout=600)


def wait_until_redrawn(page: Page, selector: str, before: str) -> None:
    """Wait until the picture of a canvas differs from `before`, which `picture_of` returned."""
    redrawn = f"([selector, before]) => ![undefined, before].includes(({_DRAWN})(selector))"
    page.wait_for_function(redrawn, arg=[selector, before])


def picture_of(page: Page, selector: str) -> str:
    """Return the picture of a canvas as a data URL; a screenshot would wait while the canvas is redrawn."""
    return page.evaluate(_DRAWN, selector)


def fill(page: Page, selector: str, text: str) -> None:
    """Type into a field, at the earliest one frame after it appeared.

    Gradio renders the fields of a tab when the tab is first opened, and sets their initial values again
    before the next frame, so text that was typed before that frame is lost.
    """
    page.locator(selector).wait_for()
    page.evaluate(_NEXT_FRAME)
    page.fill(selector, text)


def count_answers(context: BrowserContext) -> None:
    """Make each page of a context count its unanswered requests, for `wait_for_answers`."""
    context.add_init_script(path=_COUNT_ANSWERS)


def wait_for_answers(page: Page, seconds: float = 120.0) -> None:
    """Wait until all requests of a page, and those that their answers trigger, are answered and rendered.

    Watching HTTP requests is not enough, because gradio sends all answers in one stream. If an answer comes
    before the reply to its request, the page opens another stream, which stays open until the next request.
    """
    page.evaluate(_NEXT_FRAME)
    while page.evaluate("() => window.unanswered() > 0"):
        page.wait_for_function("() => window.unanswered() === 0", timeout=1000 * seconds)
        page.evaluate(_NEXT_FRAME)  # by then, the requests that an answer triggers are sent


def _playwrights_own() -> str | None:
    with sync_playwright() as playwright:
        try:
            path = playwright.chromium.executable_path
        except Error:
            return None
    return path if path and os.path.exists(path) else None


def main() -> int:
    """Find or install a browser; return 1 and print an error if there is none."""
    if find_chromium() is None:
        install_chromium()
    path = find_chromium()
    print(f"browser: {path}" if path else MISSING, file=sys.stdout if path else sys.stderr)
    return 0 if path else 1


if __name__ == "__main__":
    sys.exit(main())
