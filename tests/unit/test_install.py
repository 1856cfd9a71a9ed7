"""What `make demo` prints while pip fills an environment."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

FETCHING = """\
Collecting numpy==2.4.1 (from -r requirements/stages.txt (line 40))
  Using cached numpy-2.4.1-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (6.6 kB)
  Using cached numpy-2.4.1-cp311-cp311-manylinux_2_28_x86_64.whl (16.9 MB)
Collecting torch==2.13.0 (from -r requirements/stages.txt (line 60))
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (915.2 MB)
"""


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", REPOSITORY / "requirements/install.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_that_is_fetched_is_named_with_its_size(install: ModuleType) -> None:
    state = install.Installation(pinned=68)
    state.read(FETCHING.splitlines(keepends=True))
    assert state.progress(412, 0) == "fetching package 2 of 68, torch 2.13.0 (915.2 MB); 412 MB so far"


def test_packages_are_counted_while_they_are_unpacked(install: ModuleType) -> None:
    state = install.Installation(pinned=1)
    state.read([*FETCHING.splitlines(keepends=True), "Installing collected packages: mpmath, numpy, torch\n"])
    assert state.progress(932, 2) == "unpacked 2 of 3 packages"


def test_a_failure_shows_what_pip_said(
    install: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pip").symlink_to(Path(sys.executable).with_name("pip"))
    (tmp_path / "lock.txt").write_text("no-such-package==1.0\n")
    assert install.install(tmp_path, [str(tmp_path / "lock.txt")]) == 1
    assert "No matching distribution found for no-such-package==1.0" in capsys.readouterr().out
