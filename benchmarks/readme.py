"""The README's table of figures in English and Chinese, written from a run of all benchmarks.

`docs/figures.json` holds the bars of that run, and `claims.toml` the text.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures.json"
Language = Literal["en", "zh"]
READMES: Mapping[Language, Path] = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
_SECTION = re.compile(r"(?<=<!-- make bench -->\n).*?(?=<!-- /make bench -->)", re.DOTALL)
_TEXT = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))
CLAIMS: list[dict[str, str]] = _TEXT["claims"]


def section(content: Mapping[str, Any], language: Language) -> str:
    """Return the text between a README's two markers. Raises KeyError if a claim was not measured."""
    words, machine = _TEXT["words"][language], content["machine"]
    load = words["busy" if machine["is_busy"] else "quiet"]
    lines = [words["on"].format(**{**machine, "load": load}), "", words["head"], "| --- | --- | --- |"]
    for claim in CLAIMS:
        (bar,) = (bar for bar in content[claim["benchmark"]]["bars"] if bar["what"] == claim["what"])
        unit = words.get(bar["unit"], bar["unit"])
        figure = f"{_rounded(bar['figure'])} {unit}".strip() + ("" if bar["is_met"] else words["missed"])
        limit = f"{words[bar['sense']]} {_rounded(bar['limit'])} {unit}".strip()
        lines.append(f"| {claim[language]} | {figure} | {limit} |")
    return "\n".join(lines) + "\n"


def with_section(readme: str, content: Mapping[str, Any], language: Language) -> str:
    """Return a README with the section replaced."""
    replaced, count = _SECTION.subn(lambda _: section(content, language), readme)
    assert count == 1, f"the README has {count} sections for the figures"
    return replaced


def write(content: Mapping[str, Any]) -> None:
    """Store a run's bars, and update both READMEs."""
    bars = {name: {"bars": found["bars"]} for name, found in content.items() if "bars" in found}
    stored = {"machine": content["machine"], **bars}
    FIGURES.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    for language, path in READMES.items():
        path.write_text(with_section(path.read_text(encoding="utf-8"), stored, language), encoding="utf-8")


def _rounded(figure: float) -> str:
    """Format three significant digits without an exponent."""
    return f"{figure:.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
