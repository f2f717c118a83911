"""Lists the packages of an image in `sbom.cdx.json` (CycloneDX) and `licences.txt`. Runs in the image during its build.

    inventory.py PYTHON DIRECTORY

Python packages are those of the interpreter PYTHON, from CycloneDX's own tool. System packages are those of dpkg.
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
    """Return the CycloneDX document of an interpreter's packages."""
    # `--output-reproducible` leaves out times and random numbers, which differ from build to build.
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON", python]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def system_packages() -> list[dict[str, Any]]:
    """Return a component for each Debian package, with the licences in its copyright file."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", _FIELDS], check=True, capture_output=True, text=True).stdout
    return [_component(*line.split("\t")) for line in listed.splitlines()]


def _component(qualified: str, version: str, architecture: str, source: str) -> dict[str, Any]:
    name = qualified.partition(":")[0]
    file = Path(f"/usr/share/doc/{name}/copyright")
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    names = sorted({licence.strip() for licence in _LICENCE.findall(text)})
    return {
        "type": "library",
        "bom-ref": f"deb:{qualified}",
        "name": name,
        "version": version,
        "purl": f"pkg:deb/debian/{name}@{version}?arch={architecture}&upstream={source}",
        "licenses": [{"license": {"name": each}} for each in names or [f"see {file}"]],
    }


def licences(document: dict[str, Any]) -> str:
    """Return one line with the licences of each component, sorted."""
    lines = []
    for component in document["components"]:
        found = component.get("licenses", [])
        names = [each.get("expression") or each["license"].get("id") or each["license"]["name"] for each in found]
        text = "; ".join(names) or "not named; see the dist-info of the package"
        lines.append(f"{component['name']} {component['version']}: {text}\n")
    return "".join(sorted(lines, key=str.lower))


def main() -> None:
    """Write both files."""
    python, directory = sys.argv[1], Path(sys.argv[2])
    document = python_packages(python)
    document["components"] += system_packages()
    directory.mkdir(parents=True)
    (directory / "sbom.cdx.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (directory / "licences.txt").write_text(licences(document), encoding="utf-8")


if __name__ == "__main__":
    main()
