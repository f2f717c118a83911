"""The messages on the troubleshooting page are those of the code."""

import ast
import errno
import os
import re
from collections.abc import Iterator

import pytest

from tests.support.documentation import ROOT, Page

PAGE = ROOT / "docs" / "guide" / "troubleshooting.md"
_LOG_MESSAGE = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
_PROSE = re.compile(r"(?<![\w-])[a-z']+ [a-z']+ [a-z']+(?![\w-])")  # three words; names, paths and numbers have less
_SEPARATORS = re.compile(r"; |: |, |\. |\.$| and | in ")
_MIN_LETTERS = 8  # of a template, so that none matches everything
_SYSTEM_TEXTS = {os.strerror(errno.EADDRINUSE), "[Errno -2] Name or service not known"}

Templates = list[re.Pattern[str]]


def _messages() -> list[str]:
    blocks = [block.code for block in Page.read(PAGE).blocks if block.language == "text"]
    joined = (code.replace("\n  ", " ") for code in blocks)  # indented lines continue a message
    lines = [line.removeprefix("sd35: ") for code in joined for line in code.splitlines()]
    return [*lines, *_LOG_MESSAGE.findall(PAGE.read_text(encoding="utf-8"))]


def _texts(source: str) -> Iterator[str]:
    """Yield the strings of a module, with a NUL character in place of each value in an f-string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _without_separator(text: str) -> str:
    return text.lstrip(";, ")


def _templates(text: str) -> Iterator[re.Pattern[str]]:
    for line in map(_without_separator, text.splitlines()):
        if len(re.findall(r"[A-Za-z]", line)) >= _MIN_LETTERS:
            for value in ("(.*)", "(.*?)"):
                yield re.compile(value.join(map(re.escape, line.split("\0"))))


@pytest.fixture(scope="module")
def templates() -> Templates:
    """A pattern for each line of each string of the package. Its groups are the values."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    texts = {text for source in sources for text in _texts(source)} | _SYSTEM_TEXTS
    return [template for text in texts for template in _templates(text)]


def _is_known(text: str, templates: Templates) -> bool:
    """Return whether a text is a value, one of the code's strings with such texts as its values, or joined of such."""
    if not _PROSE.search(text):
        return True
    matches = filter(None, (template.fullmatch(text) for template in templates))
    if any(all(_is_known(value, templates) for value in match.groups()) for match in matches):
        return True
    parts = [(text[: found.start()], text[found.end() :]) for found in _SEPARATORS.finditer(text)]
    return any(_is_known(before, templates) and _is_known(after, templates) for before, after in parts)


def test_the_page_has_messages():
    """Of commands, of the API, and of the log."""
    assert len(_messages()) > 40


@pytest.mark.parametrize("message", _messages())
def test_a_message_is_in_the_code(message: str, templates: Templates):
    """As the page quotes it, with any values."""
    assert _is_known(message, templates)


@pytest.mark.parametrize(
    "message",
    [
        "the database sd35.db has no API keys any more",
        "host: got 'gpu.lan'; allowed: an IP address, localhost, and the names in the setting allowed_hosts",
    ],
)
def test_a_reworded_message_is_noticed(message: str, templates: Templates):
    """Though it has the same meaning."""
    assert not _is_known(message, templates)
