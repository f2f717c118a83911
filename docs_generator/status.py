"""Generate docs/reference/status.md from docs/reference/status.toml."""

import tomllib
from pathlib import Path
from typing import NamedTuple

from docs_generator.markdown import document, table

_INTRODUCTION = """
This page lists what each feature was tried on. **No GPU was used for any of this.** The
[glossary](glossary.md) explains terms such as fallback and offload. The states mean:

- **works**: the feature was tested, or tried by hand. The third column says on what.
- **built, not run**: the feature was built. Its parts that need a GPU were not run.
- **not run**: the feature itself was not run. The third column says what was tried instead, if anything.
"""
_STATES = {"works": "works", "built": "built, **not run**", "not run": "**not run**"}


class Row(NamedTuple):
    """A feature of an area, its state (a key of `_STATES`), what it was tried on, and what was not tried."""

    area: str
    feature: str
    state: str
    tried_on: str = ""
    not_tried: str = ""


def page(source: Path) -> str:
    """Return the page in Markdown. Raises TypeError or KeyError for a row with a missing or unknown key or state."""
    rows = [Row(**row) for row in tomllib.loads(source.read_text(encoding="utf-8"))["rows"]]
    parts = []
    for area in dict.fromkeys(row.area for row in rows):
        cells = ([row.feature, _STATES[row.state], row.tried_on, row.not_tried] for row in rows if row.area == area)
        parts += [f"## {area}", table(["Feature", "State", "Tried on", "Not tried"], cells)]
    return document("Status", "docs/reference/status.toml", _INTRODUCTION, *parts)
