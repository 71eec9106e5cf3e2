"""Take the screenshots in assets/ of a real default run in a real browser."""

import tempfile
from pathlib import Path

from app_server import serve
from browser import FLAGS, MISSING, fill, find_chromium
from playwright.sync_api import Page, expect, sync_playwright
from processes import ROOT

ASSETS = ROOT / "assets"
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 380, "height": 800}


def main() -> None:
    """Train, merge, compare and predict, with a screenshot of each. About 3 minutes on two cores."""
    path = find_chromium()
    assert path is not None, MISSING
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "runs") as app,
        sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page(viewport=WIDE)
        page.goto(app.url)
        expect(page.get_by_test_id("cost")).to_be_visible(timeout=60_000)
        shot(page, "start")
        page.click("#train")
        expect(page.get_by_test_id("progress")).to_contain_text("tokens/s", timeout=60_000)
        page.wait_for_timeout(25_000)
        shot(page, "training")
        expect(page.get_by_test_id("result")).to_be_visible(timeout=300_000)
        page.click("#merge")
        expect(page.get_by_test_id("certificate")).to_be_visible(timeout=120_000)
        shot(page, "train")
        page.get_by_role("tab", name="Compare parameters").click()
        fill(page, "#compare-labels input", "5")
        page.click("#count")
        expect(page.locator("#counts")).to_contain_text("298,757", timeout=60_000)
        shot(page, "compare")
        page.get_by_role("tab", name="Inference").click()
        fill(page, "#text textarea", "It is not without charm, but two hours is a long time to wait for it.")
        page.click("#classify")
        expect(page.get_by_test_id("difference")).to_be_visible(timeout=60_000)
        shot(page, "inference")
        page.get_by_role("tab", name="Explain").click()
        page.locator("#rows .virtual-row").nth(2).click()
        expect(page.get_by_test_id("explained")).to_be_visible(timeout=60_000)
        shot(page, "why")
        page.get_by_role("tab", name="Calibration").click()
        expect(page.locator("#coverage canvas")).to_be_visible(timeout=60_000)
        shot(page, "trust")
        page.get_by_role("tab", name="Export").click()
        page.click("#make-onnx")
        expect(page.get_by_test_id("onnx-report")).to_be_visible(timeout=180_000)
        shot(page, "take-away")
        address = page.url
        page.goto(f"{address}&__theme=dark")
        expect(page.get_by_test_id("result")).to_be_visible(timeout=60_000)
        shot(page, "train-dark")
        narrow = browser.new_page(viewport=NARROW)
        narrow.goto(app.url)
        expect(narrow.get_by_test_id("cost")).to_be_visible(timeout=60_000)
        shot(narrow, "narrow")
        browser.close()


def shot(page: Page, name: str) -> None:
    """Take a screenshot once fonts and charts have settled, with the pointer out of the way."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    page.screenshot(path=ASSETS / f"{name}.png")


if __name__ == "__main__":
    main()
