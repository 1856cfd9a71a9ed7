"""A stack of its own for the browser: object store and Airflow, with the demo corpus in it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES_PYTHON = REPOSITORY / ".venv/stages/bin/python"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Quiet: without these Chromium talks to its maker's servers.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _demo(script: str, *arguments: str) -> None:
    subprocess.run([STAGES_PYTHON, REPOSITORY / "demo" / script, *arguments], check=True, stdout=sys.stderr)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an Airflow in which the demo has run once."""
    run_dir = tmp_path_factory.mktemp("stack")
    try:
        _demo("stack.py", "up", "--run-dir", str(run_dir))
        _demo("run.py", "--run-dir", str(run_dir))
        settings = dict(line.split("=", 1) for line in (run_dir / "env").read_text().splitlines())
        yield f"http://127.0.0.1:{settings['AIRFLOW_PORT']}"
    finally:
        _demo("stack.py", "down", "--run-dir", str(run_dir))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(f"no browser found: install one of {', '.join(BROWSERS)}, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    folder = Path(os.environ.get("SCREENSHOTS", REPOSITORY / ".run/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
