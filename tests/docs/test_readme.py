"""The README and its Chinese twin."""

import re
from pathlib import Path

import pytest

from benchmarks.readme import READMES, Language

ROOT = Path(__file__).parents[2]
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+# .*")
_LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def _commands(language: Language) -> list[str]:
    """Each fenced block, without what is said beside its lines."""
    blocks = _FENCED.findall(READMES[language].read_text(encoding="utf-8"))
    return ["\n".join(_COMMENT.sub("", line) for line in block.splitlines()) for block in blocks]


def test_the_chinese_twin_has_the_same_commands():
    """In the same order; what is said beside them is translated."""
    assert _commands("zh") == _commands("en")


@pytest.mark.parametrize("language", READMES)
def test_links_lead_somewhere(language: Language):
    """To files of this repository, from both."""
    links = _LINK.findall(READMES[language].read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert links
    assert not missing


def test_the_chinese_twin_says_as_much():
    """It has the same headings, rows of tables, pictures and links; only the way to each other differs."""
    shapes = []
    for path in READMES.values():
        text = path.read_text(encoding="utf-8")
        links = sorted(link for link in _LINK.findall(text) if not link.startswith("README"))
        shapes.append(
            (len(re.findall(r"^#+ ", text, re.MULTILINE)), len(re.findall(r"^\| ", text, re.MULTILINE)), links)
        )
    assert shapes[0] == shapes[1]
