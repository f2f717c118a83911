"""The README and its Chinese twin."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme import CLAIMS, FIGURES, READMES, Language, section, with_section

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
    """It has the same headings, rows of tables, images and links; only the way to each other differs."""
    shapes = []
    for path in READMES.values():
        text = path.read_text(encoding="utf-8")
        links = sorted(link for link in _LINK.findall(text) if not link.startswith("README"))
        shapes.append(
            (len(re.findall(r"^#+ ", text, re.MULTILINE)), len(re.findall(r"^\| ", text, re.MULTILINE)), links)
        )
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("language", READMES)
def test_a_run_of_all_benchmarks_renews_the_table(language: Language):
    """And nothing else: each claim has its row, a missed one says so, and the same run changes nothing more."""
    bar = {"figure": 1.234, "unit": "x", "sense": ">=", "limit": 2.0, "is_met": False}
    machine = {"date": "2026-01-02", "processor": "a processor", "cores": 2, "commit": "abc", "is_busy": True}
    content: dict[str, Any] = {"machine": machine}
    for claim in CLAIMS:
        content.setdefault(claim["benchmark"], {"bars": []})["bars"].append({**bar, "what": claim["what"]})
    before = READMES[language].read_text(encoding="utf-8")
    after = with_section(before, content, language)
    table = section(content, language)
    assert len(re.findall(r"^\| .+ \| 1\.23 .*\*\*.+\*\* \| .*2 .* \|$", table, re.MULTILINE)) == len(CLAIMS)
    assert "2026-01-02" in table
    assert "a processor" in table
    begin, end = "<!-- make bench -->\n", "<!-- /make bench -->"
    assert after == before[: before.index(begin)] + begin + table + before[before.index(end) :]
    assert with_section(after, content, language) == after


@pytest.mark.parametrize("language", READMES)
def test_the_table_is_that_of_the_last_run_of_all(language: Language):
    """Both READMEs say what docs/figures.json holds, and no figure was set by hand."""
    text = READMES[language].read_text(encoding="utf-8")
    assert with_section(text, json.loads(FIGURES.read_text(encoding="utf-8")), language) == text
