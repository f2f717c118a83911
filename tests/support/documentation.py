"""The documentation's pages, parsed: fenced blocks, headings, links and prose."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
_FOLDERS = ("guide", "reference", "design", "benchmarks")
# Pages whose blocks are run, unless they are marked.
RUN_PAGES = [
    ROOT / "README.md",
    ROOT / "src/sd35/checkpoints/embedded/sd35-mini/README.md",
    *sorted(path for folder in _FOLDERS for path in (ROOT / "docs" / folder).glob("*.md")),
]
_NOT_RUN = re.compile(r"<!--\s*not run\b:?(.*?)-->", re.DOTALL)
_PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: The word after the fence; empty if there is none.
        code: The text between the fences.
        line: The line of the opening fence, from 1.
        reason: The text of a `<!-- not run: ... -->` before the block; None without one.
    """

    language: str
    code: str
    line: int
    reason: str | None = None


class Page:
    """A Markdown file."""

    def __init__(self, text: str) -> None:
        self._tokens = _PARSER.parse(text)

    @classmethod
    def read(cls, path: Path) -> "Page":
        """Parse a file."""
        return cls(path.read_text(encoding="utf-8"))

    @cached_property
    def blocks(self) -> list[Block]:
        """The fenced blocks in order."""
        return [
            Block(token.info.strip(), token.content, (token.map or [0])[0] + 1, _reason(before))
            for before, token in zip([None, *self._tokens], self._tokens, strict=False)
            if token.type == "fence"
        ]

    @cached_property
    def anchors(self) -> set[str]:
        """The anchors that GitHub gives the headings, and those of HTML's `id` and `name`."""
        inline = [token for before, token in pairwise(self._tokens) if before.type == "heading_open"]
        found: set[str] = set()
        seen: Counter[str] = Counter()
        for token in inline:
            slug = _slug("".join(child.content for child in token.children or [] if child.type != "html_inline"))
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        html = (token.content for token in self._all() if token.type in {"html_block", "html_inline"})
        return found | {name for text in html for name in re.findall(r"\b(?:id|name)=[\"']([^\"']+)", text)}

    @cached_property
    def links(self) -> list[str]:
        """The addresses of links and images, in order, also of those in HTML."""
        found: list[str] = []
        for token in self._all():
            if token.type == "link_open":
                found.append(str(token.attrGet("href")))
            elif token.type == "image":
                found.append(str(token.attrGet("src")))
            elif token.type in {"html_block", "html_inline"}:
                found += re.findall(r"\b(?:href|src|srcset)=[\"']([^\"']+)", token.content)
        return found

    @property
    def words(self) -> int:
        """The number of words outside fenced blocks."""
        inline = (token for token in self._tokens if token.type == "inline")
        texts = ("".join(_visible(child) for child in token.children or []) for token in inline)
        return sum(bool(re.search(r"\w", word)) for text in texts for word in text.split())

    def _all(self) -> Iterator[Token]:
        for token in self._tokens:
            yield token
            yield from token.children or []


def _reason(before: Token | None) -> str | None:
    found = _NOT_RUN.search(before.content) if before and before.type == "html_block" else None
    return found[1].strip() if found else None


def _slug(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _visible(token: Token) -> str:
    return "\n" if token.type in {"softbreak", "hardbreak"} else token.content if token.type != "html_inline" else ""
