"""All pages of the documentation: their links, the files they name, and their length."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.documentation import ROOT, Page

_FOLDERS = ("src", "tests", "benchmarks", "training", "deploy", "docs", "docs_generator", "examples", "requirements")
PAGES = [*sorted(ROOT.glob("*.md")), *(path for name in _FOLDERS for path in sorted((ROOT / name).rglob("*.md")))]
DESIGN_PAGES = sorted((ROOT / "docs" / "design").glob("*.md"))
MAX_DESIGN_WORDS = 900
MAX_README_WORDS, MAX_README_LINES = 1500, 200
SHORT_READMES = [ROOT / "README.md"]
_PATH = re.compile(r"`([\w./*-]+\.(?:py|toml|css|js|md|sh|yaml))`")
_MODULE = re.compile(r"`(sd35(?:\.[a-z0-9_]+)+)`")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")

_OTHER_PATHS = re.compile(
    r"build/.*"  # generated
    r"|.*NAME.*"  # a placeholder
    r"|torch/.*"  # of another project
)
# Files of checkpoints and data, keys in PNG files, attributes of spans.
_OTHER_NAMES = re.compile(r"sd35\.(json|db|request|digest|maker|job|cache)")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


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


def _broken_links(path: Path, page: Page) -> list[str]:
    """Return the links whose file or anchor does not exist, except those of other sites."""
    broken = []
    for link in page.links:
        name, _, anchor = unquote(link).partition("#")
        target = path.parent / name if name else path
        if _SCHEME.match(link):
            continue
        if not target.exists() or not target.resolve().is_relative_to(ROOT):
            broken.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md":
            anchors = page.anchors if target == path else Page.read(target).anchors
            broken += [] if anchor in anchors else [f"{link}: no such heading"]
    return broken


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_resolve(path: Path):
    """Each relative link names a file of the repository, and a heading of it."""
    assert not _broken_links(path, Page.read(path))


def test_broken_links_are_found():
    """A missing file, a missing heading, and a file outside the repository."""
    page = Page(
        "# A heading\n[1](#a-heading) [2](#none) [3](CHANGELOG.md) [4](none.md) [5](../x) [6](https://x.example)"
    )
    broken = _broken_links(ROOT / "README.md", page)
    assert [each.partition(":")[0] for each in broken] == ["#none", "none.md", "../x"]


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_paths_and_modules_in_backticks_exist(path: Path, known_paths: set[str]):
    """A path may be relative to any folder above the file."""
    assert not _missing(path.read_text(encoding="utf-8"), known_paths)


def test_missing_paths_and_modules_are_found(known_paths: set[str]):
    """Paths and modules of other names fail the test above."""
    text = "`src/sd35/request.py`, `engine/base.py`, `src/sd35/requests.py`, `sd35.engine.base`, `sd35.engine.loop`"
    assert _missing(text, known_paths) == ["src/sd35/requests.py", "sd35.engine.loop"]


@pytest.mark.parametrize("path", DESIGN_PAGES, ids=_name)
def test_a_design_page_is_short(path: Path):
    """It has at most 900 words outside its code blocks."""
    assert Page.read(path).words <= MAX_DESIGN_WORDS


@pytest.mark.parametrize("path", SHORT_READMES, ids=_name)
def test_the_readme_is_short(path: Path):
    """It has at most 200 lines, and 1,500 words outside its code blocks."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    assert Page(text).words <= MAX_README_WORDS


def test_words_are_counted_without_code_blocks():
    """A word has a letter or a digit; links count by their text."""
    text = "# A title\n\nOne **two** [three four](x.md) - `five` six\nseven.\n\n```console\n$ not counted\n```\n"
    assert Page(text + "\n| eight | nine |\n| --- | --- |\n| ten | |\n").words == 12
