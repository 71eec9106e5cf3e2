"""Tests of the login: a wrong password is refused, the correct one opens the page, logout closes it."""

from pathlib import Path

from app_server import serve
from conftest import PATIENCE
from playwright.sync_api import BrowserContext, expect


def test_login_opens_page_only_with_correct_password(browser_context: BrowserContext, tmp_path: Path) -> None:
    with serve(tmp_path / "runs", AUTH="me:secret") as server:
        page = browser_context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(server.url)
        for password in ("wrong", "secret"):
            page.get_by_label("username").fill("me")
            page.get_by_label("password").fill(password)
            page.get_by_role("button", name="Login").click()
            if password == "wrong":
                expect(page.get_by_text("Incorrect Credentials")).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_test_id("cost")).to_contain_text("74,498", timeout=3 * PATIENCE)
        answer = page.request.get(f"{server.url}/logout")  # like a link on another site
        assert answer.status == 403
        page.evaluate("() => fetch('/logout')")
        page.reload()
        expect(page.get_by_label("username")).to_be_visible(timeout=PATIENCE)
        log = next(tmp_path.glob("app-*.log")).read_text(encoding="utf-8")
        assert "Wrong password from 127.0.0.1 (number 1)." in log and "secret" not in log
        page.close()
