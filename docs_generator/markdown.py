"""Parts of a Markdown page."""

import re
from collections.abc import Iterable, Sequence

_SPACES = re.compile(r"\s+")
_DEFAULT = re.compile(r" Default: (.+?)\.(?= [A-Z]|$)")
_WORD = re.compile(r"[a-z][a-z'-]*[,;:.]?(?: |$)")


def document(title: str, source: str, *parts: str) -> str:
    """Return a page: a notice that names its source, the title, and the parts."""
    notice = f"<!-- `make docs` writes this page from {source}. Change that, not this file. -->"
    return "\n\n".join([notice, f"# {title}", *(part.strip("\n") for part in parts if part)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. Line breaks in cells become spaces, and bars are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def code(text: str) -> str:
    """Return text as code; an empty string if there is none."""
    return f"`{text}`" if text else ""


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sentence(text: str) -> str:
    """Return text with an upper-case first letter, unless it begins with a name or a number, and with a full stop."""
    text = text.strip()
    is_word = _WORD.match(text) is not None
    return text and (text[0].upper() if is_word else text[0]) + text[1:] + ("" if text[-1] in ".!?:" else ".")


def default_in_words(text: str) -> tuple[str, str]:
    """Return the default that a text names (`Default: ...`), if it does, and the text without it."""
    default = _DEFAULT.search(text)
    return default[1] if default else "", _DEFAULT.sub("", text)


def _cell(text: str) -> str:
    return _SPACES.sub(" ", text).strip().replace("|", r"\|")
