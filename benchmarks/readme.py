"""The tables of figures, written from a run of all benchmarks.

`docs/figures.json` holds the bars of that run, and `claims.toml` the text. The table of docs/benchmarks/results.md has
all claims. Those of the two READMEs have the claims that are marked `in_readme`.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures.json"
Language: TypeAlias = Literal["en", "zh"]
Claim: TypeAlias = Mapping[str, Any]
_SECTION = re.compile(r"(?<=<!-- make bench -->\n).*?(?=<!-- /make bench -->)", re.DOTALL)
_TEXT = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))
CLAIMS: Sequence[Claim] = _TEXT["claims"]


class Target(NamedTuple):
    """A page with a table: its path, its language, and the claims of the table."""

    path: Path
    language: Language
    claims: Sequence[Claim]

    def section(self, content: Mapping[str, Any]) -> str:
        """Return the text between the page's two markers. Raises KeyError if a claim was not measured."""
        words, machine = _TEXT["words"][self.language], content["machine"]
        load = words["busy" if machine["is_busy"] else "quiet"]
        lines = [words["on"].format(**{**machine, "load": load}), "", words["head"], "| --- | --- | --- |"]
        for claim in self.claims:
            (bar,) = (bar for bar in content[claim["benchmark"]]["bars"] if bar["what"] == claim["what"])
            unit = words.get(bar["unit"], bar["unit"])
            figure = _with_unit(bar["figure"], unit) + ("" if bar["is_met"] else words["missed"])
            limit = f"{words[bar['sense']]} {_with_unit(bar['limit'], unit)}"
            lines.append(f"| {claim[self.language]} | {figure} | {limit} |")
        return "\n".join(lines) + "\n"

    def with_section(self, text: str, content: Mapping[str, Any]) -> str:
        """Return the page's text with the section replaced."""
        replaced, count = _SECTION.subn(lambda _: self.section(content), text)
        assert count == 1, f"{self.path} has {count} sections for the figures"
        return replaced


_IN_README = [claim for claim in CLAIMS if claim.get("in_readme")]
README = Target(ROOT / "README.md", "en", _IN_README)
README_ZH = Target(ROOT / "README.zh-CN.md", "zh", _IN_README)
TARGETS = (README, README_ZH, Target(ROOT / "docs" / "benchmarks" / "results.md", "en", CLAIMS))


def write(content: Mapping[str, Any]) -> None:
    """Store a run's bars, and update the tables."""
    bars = {name: {"bars": found["bars"]} for name, found in content.items() if "bars" in found}
    FIGURES.write_text(json.dumps({"machine": content["machine"], **bars}, indent=2) + "\n", encoding="utf-8")
    write_tables()


def write_tables() -> None:
    """Update the tables from the stored bars."""
    content = stored()
    for target in TARGETS:
        text = target.path.read_text(encoding="utf-8")
        target.path.write_text(target.with_section(text, content), encoding="utf-8")


def stored() -> Any:  # noqa: ANN401  any JSON value
    """Return the bars of the last run of all benchmarks."""
    return json.loads(FIGURES.read_text(encoding="utf-8"))


def _with_unit(figure: float, unit: str) -> str:
    return f"{_rounded(figure)}{'' if unit == 'x' else ' '}{unit}".strip()


def _rounded(figure: float) -> str:
    """Format three significant digits without an exponent."""
    return f"{figure:.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
