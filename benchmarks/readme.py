"""Write the tables of figures in the documentation, from a run of all benchmarks.

A row of a table is a claim: its text is in claims.toml, and its figure in docs/figures.json, which has the bars of the
run. The table of docs/benchmarks/results.md has all claims. The tables of the two READMEs have those that are marked
`in_readme`.
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
    """A page with a table of figures: its path, its language, and the claims of the table."""

    path: Path
    language: Language
    claims: Sequence[Claim]

    def section(self, content: Mapping[str, Any]) -> str:
        """Return the new text between the page's two markers: the machine and the table.

        `content` is a run, as in docs/figures.json. Raises KeyError or ValueError if a claim was not measured.
        """
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
        """Return `text`, the text of the page, with a new table."""
        replaced, count = _SECTION.subn(lambda _: self.section(content), text)
        assert count == 1, f"{self.path} has {count} sections for the figures"
        return replaced


_IN_README = [claim for claim in CLAIMS if claim.get("in_readme")]
README = Target(ROOT / "README.md", "en", _IN_README)
README_ZH = Target(ROOT / "README.zh-CN.md", "zh", _IN_README)
TARGETS = (README, README_ZH, Target(ROOT / "docs" / "benchmarks" / "results.md", "en", CLAIMS))


def write(content: Mapping[str, Any]) -> None:
    """Store the bars of a run in docs/figures.json, and update the tables. `content` is that of `Run.content`."""
    bars = {name: {"bars": outcome["bars"]} for name, outcome in content.items() if "bars" in outcome}
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
    """Return a figure with its unit: "12.3 MB", "1.5x", or "0.71" without a unit."""
    return f"{_rounded(figure)}{'' if unit == 'x' else ' '}{unit}".strip()


def _rounded(figure: float) -> str:
    """Return a figure with three significant digits, or all digits before the decimal point, without an exponent."""
    return f"{figure:.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
