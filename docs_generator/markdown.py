"""Format parts of a page in Markdown."""

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
    """Return a table. Line breaks in cells become spaces, and vertical bars are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def code(text: str) -> str:
    """Return text in backquotes, or an empty text unchanged."""
    return f"`{text}`" if text else ""


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sentence(text: str) -> str:
    """Return text with a full stop at its end, and an upper-case letter at its beginning.

    A text that begins with a name, code or a number keeps its beginning, and an empty text stays empty.
    """
    text = text.strip()
    if _WORD.match(text):
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?", ":")) or not text else f"{text}."


def default_in_words(text: str) -> tuple[str, str]:
    """Split a text with a sentence "Default: DEFAULT." into the default and the other text.

    The default is empty if the text does not name it.
    """
    default = _DEFAULT.search(text)
    return default[1] if default else "", _DEFAULT.sub("", text)


def _cell(text: str) -> str:
    return _SPACES.sub(" ", text).strip().replace("|", r"\|")
