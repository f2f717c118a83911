"""The README, its Chinese translation, and the tables of figures."""

import re
from typing import Any

import pytest

from benchmarks.readme import CLAIMS, README, README_ZH, TARGETS, Target, stored
from sd35.checkpoints.network_sizes import network_sizes_by_name
from sd35.checkpoints.registry import find_registered
from sd35.planning.fit import memory_with_vram, placement_of, plan_for
from sd35.settings import load_settings
from tests.support.documentation import Page

_COMMENT = re.compile(r"\s+# .*")
_CARDS_ROW = re.compile(r"^\| (Large.*?|Medium) \| (BF16|FP8) \| (.+) \| ([\d.]+) \|$", re.MULTILINE)
_CARDS_CELL = re.compile(r"([\d.]+) `(\w+)`(.*)")
_CARDS_GIB = ((8,), (12,), (16,), (24,), (48, 80))  # of the columns
_PRECISIONS = {"BF16": "bfloat16", "FP8": "fp8"}
_OTHER_LINKS = ("README", "#", "http://127.0.0.1")  # to the other language, to headings, and addresses in the text


def _commands(target: Target) -> list[tuple[str, str]]:
    """Return the language and the code of each block that is not a diagram, without comments at the ends of lines."""
    blocks = [each for each in Page.read(target.path).blocks if each.language != "mermaid"]
    return [(each.language, "\n".join(_COMMENT.sub("", line) for line in each.code.splitlines())) for each in blocks]


def _planned(model: str, precision: str, vram_gib: int) -> tuple[str, str, bool, str]:
    """Return what the planner says: VRAM with the margin, offload, tiled decoding, and the host's memory."""
    name = "sd3.5-" + model.lower().replace(" ", "-")
    settings = load_settings({"backend": "diffusers", "precision": precision, "vram": f"{vram_gib}GiB"})
    sizes = network_sizes_by_name(find_registered(name, None))
    placement = placement_of(plan_for(settings, [sizes], memory_with_vram(settings)))
    needed, host = (f"{size / 2**30:.1f}" for size in (placement.needed_bytes, placement.host_bytes))
    return needed, placement.offload, placement.tiled_decode, host


def test_the_translation_has_the_same_commands():
    """In the same order. Comments at the ends of lines are translated."""
    assert _commands(README_ZH) == _commands(README)


def test_the_translation_has_the_same_shape():
    """It has the same headings, table rows, images and links, except for some links."""
    shapes = []
    for target in (README, README_ZH):
        text = target.path.read_text(encoding="utf-8")
        links = sorted(link.partition("#")[0] for link in Page(text).links if not link.startswith(_OTHER_LINKS))
        shapes.append(
            (len(re.findall(r"^#+ ", text, re.MULTILINE)), len(re.findall(r"^\| ", text, re.MULTILINE)), links)
        )
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("target", [README, README_ZH], ids=lambda target: target.path.name)
def test_the_table_of_cards_is_what_the_planner_computes(target: Target):
    """Each model in each precision, for each size of a card."""
    rows = _CARDS_ROW.findall(target.path.read_text(encoding="utf-8"))
    models = [(model, precision) for names, precision, *_ in rows for model in re.split(", |、", names)]
    assert sorted(models) == [(model, each) for model in ("Large", "Large Turbo", "Medium") for each in _PRECISIONS]
    for names, precision, columns, host in rows:
        cells = [_CARDS_CELL.fullmatch(cell) for cell in columns.split(" | ")]
        for model in re.split(", |、", names):
            for cell, sizes in zip(cells, _CARDS_GIB, strict=True):
                assert cell
                shown = cell[1], cell[2], bool(cell[3]), host
                assert {_planned(model, _PRECISIONS[precision], size) for size in sizes} == {shown}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.path.name)
def test_a_run_of_all_benchmarks_renews_the_table(target: Target):
    """Nothing else changes. Each claim has its row, which marks a missed target; the same run changes nothing more."""
    bar = {"figure": 1.234, "unit": "x", "sense": ">=", "limit": 2.0, "is_met": False}
    machine = {"date": "2026-01-02", "processor": "a processor", "cores": 2, "commit": "abc", "is_busy": True}
    content: dict[str, Any] = {"machine": machine}
    for claim in CLAIMS:
        content.setdefault(claim["benchmark"], {"bars": []})["bars"].append({**bar, "what": claim["what"]})
    before = target.path.read_text(encoding="utf-8")
    after = target.with_section(before, content)
    table = target.section(content)
    assert len(re.findall(r"^\| .+ \| 1\.23.*\*\*.+\*\* \| .*2.* \|$", table, re.MULTILINE)) == len(target.claims)
    assert "2026-01-02" in table
    assert "a processor" in table
    begin, end = "<!-- make bench -->\n", "<!-- /make bench -->"
    assert after == before[: before.index(begin)] + begin + table + before[before.index(end) :]
    assert target.with_section(after, content) == after


def test_the_readmes_have_five_rows_and_the_results_all():
    """See `in_readme` in claims.toml."""
    assert [len(target.claims) for target in TARGETS] == [5, 5, len(CLAIMS)]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.path.name)
def test_the_table_is_that_of_the_last_run_of_all(target: Target):
    """The page shows what docs/figures.json holds; no figure was set by hand."""
    text = target.path.read_text(encoding="utf-8")
    assert target.with_section(text, stored()) == text, "run make docs"
