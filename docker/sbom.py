"""The packages of the environment that runs this, as a CycloneDX document (JSON) on standard output.

    .venv/stages/bin/python docker/sbom.py
    docker run --rm -i --entrypoint python3 retro-ops-stage:cpu - <docker/sbom.py

``--licences`` prints a table of packages and licences instead. Standard library only, so it runs in every image.
"""

import json
import re
import sys
from importlib import metadata

CLASSIFIER = "License :: OSI Approved :: "

UNKNOWN = "unknown"

LONGEST = 60
"""Some packages put the whole text of the licence where its name belongs."""


def licence(of: metadata.PackageMetadata) -> str:
    """Name of the licence as the package declares it: an SPDX expression, classifiers, or free text, in this order."""
    if expression := of.get("License-Expression"):
        return expression
    named = [entry.removeprefix(CLASSIFIER) for entry in of.get_all("Classifier") or () if entry.startswith(CLASSIFIER)]
    if named:
        return " AND ".join(sorted(named))
    text = (of.get("License") or "").strip().partition("\n")[0]
    return text if 0 < len(text) <= LONGEST else UNKNOWN


def packages() -> list[tuple[str, str, str]]:
    """(name, version, licence) of every installed package, sorted by name."""
    found = {}
    for distribution in metadata.distributions():
        of = distribution.metadata
        if of and of.get("Name"):
            name = re.sub(r"[-_.]+", "-", of["Name"]).lower()
            found.setdefault(name, (name, distribution.version, licence(of)))
    return [found[name] for name in sorted(found)]


def document() -> dict[str, object]:
    """CycloneDX 1.5. It holds no time and no serial number, so that equal environments have equal documents."""
    components = [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
            "licenses": [{"license": {"name": licence_name}}],
        }
        for name, version, licence_name in packages()
    ]
    python = {"type": "platform", "name": "python", "version": sys.version.partition(" ")[0]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": python},
        "components": components,
    }


def main() -> None:
    if "--licences" in sys.argv[1:]:
        for row in packages():
            print("{:40} {:16} {}".format(*row))
    else:
        print(json.dumps(document(), indent=1))


if __name__ == "__main__":
    main()
