"""A stack for the browser: of its own, with the demo in it, or the one in DEMO_RUN_DIR, where the demo has run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import FLAGS, find_browser
from demo_stack import REPOSITORY, Demo
from playwright.sync_api import Browser, Page, expect, sync_playwright


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    if there := os.environ.get("DEMO_RUN_DIR"):  # The caller stops it.
        yield Demo(Path(there))
        return
    demo = Demo(tmp_path_factory.mktemp("stack"))
    try:
        demo.script("stack.py", "up")
        demo.script("run.py")
        yield demo
    finally:
        demo.script("stack.py", "down")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # A page asks Airflow for its texts first, which takes a busy machine longer than the five seconds of the default.
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(60_000)
    yield page
    page.close()  # It would go on asking Airflow for news.


@pytest.fixture(scope="session")
def screenshots() -> Path:
    folder = Path(os.environ.get("SCREENSHOTS", REPOSITORY / ".run/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
