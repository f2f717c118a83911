"""Writes down what an image holds, in `sbom.cdx.json` (CycloneDX) and `licences.txt`, while it is built, in it.

    inventory.py PYTHON DIRECTORY

Python's packages are those that PYTHON finds, as CycloneDX's own tool lists them; the system's are dpkg's.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_FIELDS = "${binary:Package}\t${Version}\t${Architecture}\t${source:Package}\n"
_LICENCE = re.compile(r"^License:[ \t]*(\S.*)$", re.MULTILINE)  # of machine-readable copyright files (DEP-5)


def python_packages(python: str) -> dict[str, Any]:
    """CycloneDX's document about them."""
    # Its own "reproducible" leaves out what would differ from build to build: times and random numbers.
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON", python]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def system_packages() -> list[dict[str, Any]]:
    """A component for each of Debian's packages, with the licences that its copyright file names."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", _FIELDS], check=True, capture_output=True, text=True).stdout
    return [_component(*line.split("\t")) for line in listed.splitlines()]


def _component(qualified: str, version: str, architecture: str, source: str) -> dict[str, Any]:
    name = qualified.partition(":")[0]
    file = Path(f"/usr/share/doc/{name}/copyright")
    words = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    named = sorted({licence.strip() for licence in _LICENCE.findall(words)})
    return {
        "type": "library",
        "bom-ref": f"deb:{qualified}",
        "name": name,
        "version": version,
        "purl": f"pkg:deb/debian/{name}@{version}?arch={architecture}&upstream={source}",
        "licenses": [{"license": {"name": each}} for each in named or [f"see {file}"]],
    }


def licences(document: dict[str, Any]) -> str:
    """A line for each component, sorted."""
    lines = []
    for component in document["components"]:
        named = component.get("licenses", [])
        words = [each.get("expression") or each["license"].get("id") or each["license"]["name"] for each in named]
        told = "; ".join(words) or "no name given; see its dist-info"
        lines.append(f"{component['name']} {component['version']}: {told}\n")
    return "".join(sorted(lines, key=str.lower))


def main() -> None:
    """Write both."""
    python, directory = sys.argv[1], Path(sys.argv[2])
    document = python_packages(python)
    document["components"] += system_packages()
    directory.mkdir(parents=True)
    (directory / "sbom.cdx.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (directory / "licences.txt").write_text(licences(document), encoding="utf-8")


if __name__ == "__main__":
    main()
