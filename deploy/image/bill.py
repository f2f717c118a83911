"""Writes what is installed into a folder: `sbom.json` (CycloneDX 1.6) and `licences.txt`, the same for the same packages.

Runs in an image's own Python, which has nothing but the packages that it lists.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, NamedTuple


class Package(NamedTuple):
    """One that is installed. `purl` is its package URL (https://github.com/package-url/purl-spec)."""

    name: str
    version: str
    licence: str
    purl: str


def python_packages() -> Iterator[Package]:
    """Of this Python's environment."""
    for each in distributions():
        name = each.metadata["Name"].lower().replace("_", "-")
        yield Package(name, each.version, _licence_of(each), f"pkg:pypi/{name}@{each.version}")


def debian_packages() -> Iterator[Package]:
    """Of the system; their licences are in `/usr/share/doc/NAME/copyright`."""
    query = ["dpkg-query", "-W", "-f", "${Package}\\t${Version}\\t${Architecture}\\n"]
    for line in subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines():
        name, version, architecture = line.split("\t")
        purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}?arch={architecture}"
        yield Package(name, version, f"see /usr/share/doc/{name}/copyright", purl)


def sbom(packages: list[Package]) -> dict[str, Any]:
    """A CycloneDX bill of materials."""
    components = [
        {
            "type": "library",
            "bom-ref": each.purl,
            "name": each.name,
            "version": each.version,
            "licenses": [{"license": {"name": each.licence}}],
            "purl": each.purl,
        }
        for each in packages
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}


def _licence_of(distribution: Distribution) -> str:
    metadata = distribution.metadata
    classifiers = [each for each in metadata.get_all("Classifier") or [] if each.startswith("License ::")]
    named = metadata.get("License-Expression") or (metadata.get("License") or "").strip().split("\n")[0]
    return named or ", ".join(each.rpartition(" :: ")[2] for each in classifiers) or "not named"


def main() -> None:
    """Write both into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    packages = sorted([*python_packages(), *debian_packages()], key=lambda each: each.purl)
    (folder / "sbom.json").write_text(json.dumps(sbom(packages), indent=1) + "\n")
    lines = [f"{each.name} {each.version}: {each.licence}\n" for each in packages]
    (folder / "licences.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
