"""What is installed: pinned versions, each with the hashes of its files, which pip checks."""

import base64
import hashlib
import importlib.util
import re
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "requirements"
LOCKS = sorted(set(FOLDER.glob("*.txt")) - {FOLDER / "torch.txt"})
PIN = re.compile(r"[a-z0-9.-]+==[^ ]+( ; python_full_version (<|>=) '3\.13')? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_of_a_lock_is_a_pin_with_hashes(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    for line, following in zip(lines, [*lines[1:], "x==1 \\"], strict=True):
        if line.startswith(" "):
            assert HASH.fullmatch(line), line
            assert line.endswith("\\") == following.startswith(" ")
        else:
            assert PIN.fullmatch(line), line
            assert following.startswith(" "), f"{line} has no hash"


def test_torch_alone_has_no_hash() -> None:
    """Each build of it comes from an index of its own."""
    lines = (REPOSITORY / "requirements/torch.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines if not line.startswith("#")] == ["torch"]


def test_every_installation_checks_hashes() -> None:
    """In the Makefile through install.py, in images by pip itself."""
    assert not re.search(r"pip install .*-r", (REPOSITORY / "Makefile").read_text())
    for dockerfile in (REPOSITORY / "docker").glob("*.Dockerfile"):
        commands = re.findall(r"pip install (.*?)(?:&&|\n(?!\s)|$)", dockerfile.read_text().replace("\\\n", " "))
        of_locks = [command for command in commands if " -r " in command and "torch.txt" not in command]
        assert of_locks, dockerfile.name
        assert [command for command in of_locks if "--require-hashes --no-deps" not in command] == []


def wheel(folder: Path, text: str) -> str:
    """Write a package of one module; the hash of its file."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    files = {
        "tiny.py": text,
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Dist: other\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data.encode()).digest()).decode().rstrip('=')},\n"
        for name, data in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files, "tiny-1.0.dist-info/RECORD": record}.items():
            archive.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("tampered", [False, True], ids=["right", "tampered"])
def test_a_file_whose_hash_is_not_in_the_lock_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tampered: bool
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "installed"))
    (tmp_path / "lock.txt").write_text(f"tiny==1.0 \\\n    --hash=sha256:{wheel(tmp_path, 'x = 1')}\n")
    if tampered:
        wheel(tmp_path, "x = 2")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pip").symlink_to(Path(sys.executable).with_name("pip"))
    spec = importlib.util.spec_from_file_location("install", REPOSITORY / "requirements/install.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.install(tmp_path, [str(tmp_path / "lock.txt")]) == int(tampered)
    assert (tmp_path / "installed/tiny.py").exists() != tampered
    assert ("DO NOT MATCH THE HASHES" in capsys.readouterr().out) == tampered
