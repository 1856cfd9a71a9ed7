"""Opens the grid of a run in a headless browser, measures the time until it shows the tasks, and saves a screenshot."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

from browser import FLAGS, find_browser
from playwright.sync_api import expect, sync_playwright

TIMEOUT_MS = 120_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="URL of the run")
    parser.add_argument("screenshot", type=Path)
    arguments = parser.parse_args()
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(TIMEOUT_MS)
        for turn in ("first", "second"):  # The second time, the browser has the files of the UI in its cache.
            started = time.monotonic()
            page.goto(arguments.url)
            expect(page.get_by_text("retrieve_neighbours").first).to_be_visible()
            expect(page.get_by_text("shards 0").first).to_be_visible()
            print(
                f"grid page, {turn} time: {time.monotonic() - started:.1f} s until tasks and shards are visible",
                flush=True,
            )
        page.screenshot(path=arguments.screenshot)
        browser.close()


if __name__ == "__main__":
    main()
