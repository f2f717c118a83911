"""The source files and modules that the documentation names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("README*.md"))]
_FOLDERS = ("src", "tests", "benchmarks", "training", "deploy", "docs", "examples")
_PATH = re.compile(r"`([\w./*-]+\.(?:py|toml|css|js|md|sh|yaml))`")
_MODULE = re.compile(r"`(sd35(?:\.[a-z0-9_]+)+)`")

_OTHER_PATHS = re.compile(
    r"build/.*"  # generated
    r"|.*NAME.*"  # a placeholder
    r"|torch/.*"  # of another project
)
# Files of checkpoints and data, keys in PNG files, attributes of spans.
_OTHER_NAMES = re.compile(r"sd35\.(json|db|request|digest|maker|job|cache)")


@pytest.fixture(scope="module")
def known_paths() -> set[str]:
    """The repository's files, by their paths relative to each folder above them."""
    files = [path.relative_to(ROOT) for name in _FOLDERS for path in (ROOT / name).rglob("*")]
    files += [path.relative_to(ROOT) for path in ROOT.iterdir()]
    return {"/".join(file.parts[start:]) for file in files for start in range(len(file.parts))}


def _missing(text: str, known_paths: set[str]) -> list[str]:
    """Return the paths and modules in backticks that do not exist."""
    paths = [path for path in _PATH.findall(text) if not _OTHER_PATHS.fullmatch(path)]
    modules = [name for name in _MODULE.findall(text) if not _OTHER_NAMES.fullmatch(name)]
    return [
        *(path for path in paths if path not in known_paths and not ("*" in path and any(ROOT.glob(f"**/{path}")))),
        *(name for name in modules if not {(path := name.replace(".", "/")), f"{path}.py"} & known_paths),
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_modules_in_backticks_exist(document: Path, known_paths: set[str]) -> None:
    """A path may be relative to any folder above the file."""
    assert not _missing(document.read_text(encoding="utf-8"), known_paths)


def test_missing_paths_and_modules_are_found(known_paths: set[str]) -> None:
    """Paths and modules of other names fail the test above."""
    text = "`src/sd35/request.py`, `engine/base.py`, `src/sd35/requests.py`, `sd35.engine.base`, `sd35.engine.loop`"
    assert _missing(text, known_paths) == ["src/sd35/requests.py", "sd35.engine.loop"]
