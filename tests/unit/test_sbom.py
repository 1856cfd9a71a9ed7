"""The SBOM of an image: every pinned package with its version, and a licence that allows its use."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = ("stages.txt", "torch.txt", "demo.txt")
UNSTATED = {"fastokens"}
"""Packages that state no licence in their metadata; each was looked up: the LICENSE file of fastokens is Apache-2.0."""

COPYLEFT = re.compile(r"\b(A?GPL|Affero|SSPL|Commons Clause|non-?commercial)", re.IGNORECASE)


@pytest.fixture(scope="module")
def components() -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "docker/sbom.py")], capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    return {of["name"]: of for of in document["components"]}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pinned_package_is_listed_with_its_version(lock: str, components: dict[str, dict[str, str]]) -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (REPOSITORY / "requirements" / lock).read_text(), re.MULTILINE))
    assert pinned
    listed = {name: components[name]["version"].partition("+")[0] for name in map(_canonical, pinned)}
    assert listed == {_canonical(name): version for name, version in pinned.items()}


def test_no_licence_is_unknown_or_forbids_use(components: dict[str, dict[str, str]]) -> None:
    licences = {name: of["licenses"][0]["license"]["name"] for name, of in components.items()}  # type: ignore[index,call-overload]
    assert {name for name, licence in licences.items() if licence == "unknown"} <= UNSTATED
    assert {name: licence for name, licence in licences.items() if COPYLEFT.search(licence)} == {}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
