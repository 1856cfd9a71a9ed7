"""The import contracts of pyproject.toml fail when they should: an allow-list must refuse what it does not name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for package in ("retro_ops", "plugins", "reader"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _check(copy: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": f"{copy}:{copy / 'plugins'}:{copy / 'reader'}"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


def test_the_contracts_hold(copy: Path) -> None:
    found = _check(copy)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("place", "line", "contract"),
    [
        ("plugins/retro_airflow/tasks.py", "from retro_ops.quality import card_page", "Airflow's side uses only"),
        ("plugins/retro_airflow/tasks.py", "from retro_ops.versions import history", "Airflow's side uses only"),
        ("plugins/retro_airflow/runtimes/local.py", "from retro_ops import cli", "Airflow's side uses only"),
        ("plugins/retro_airflow/forms.py", "from retro_ops import added_later", "Airflow's side uses only"),
        ("retro_ops/plan/plan.py", "import numpy", "What Airflow parses"),
        ("retro_ops/search/exact.py", "from retro_ops.storage import store", "Algorithms have no input"),
        ("retro_ops/storage/s3.py", "from retro_ops.plan import paths", "Inside retro_ops imports point one way"),
        ("retro_ops/stages/list.py", "import airflow", "The stages know nothing of Airflow"),
        ("reader/retro_data/split.py", "from retro_ops.corpus import json_lines", "The reader uses only"),
        ("reader/retro_data/split.py", "import torch", "Only the reader's PyTorch datasets"),
    ],
)
def test_an_import_that_a_contract_excludes_breaks_it(copy: Path, place: str, line: str, contract: str) -> None:
    (copy / "retro_ops" / "added_later.py").write_text('"""A module that no contract names."""\n')
    file = copy / place
    before = file.read_text()
    try:
        file.write_text(f"{before}\n{line}\n")
        found = _check(copy)
    finally:
        file.write_text(before)
    assert found.returncode != 0, found.stdout
    broken = [text for text in found.stdout.splitlines() if " BROKEN" in text]
    assert [text for text in broken if text.startswith(contract)], found.stdout
