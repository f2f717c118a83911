"""CONTRIBUTING.md shows code of this repository, and the tests and make targets that it names exist."""

import re

import pytest

from tests.support.documentation import ROOT, Page

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def _without_indentation(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """The text of each Python file of the package and of its tests."""
    paths = [path for folder in ("src", "tests") for path in (ROOT / folder).rglob("*.py")]
    return [_without_indentation(path.read_text(encoding="utf-8")) for path in paths]


@pytest.mark.parametrize("code", CODE, ids=[f"{number}" for number in range(len(CODE))])
def test_a_sample_is_code_of_the_repository(sources: list[str], code: str):
    """Line for line, except for the indentation. Such code is type-checked and tested, so that a sample works."""
    assert any(_without_indentation(code) in source for source in sources)


def test_commands_are_marked_as_not_run():
    """With a reason. They run the tests themselves."""
    assert [block.line for block in Page(TEXT).blocks if block.language == "console" and not block.reason] == []


def test_named_tests_exist(sources: list[str]):
    """The functions, and the files and folders after "Tests:" and `pytest`."""
    functions = re.findall(r"`(test_\w+)`", TEXT)
    assert functions
    assert [name for name in functions if not any(f"def {name}(" in source for source in sources)] == []
    lines = re.findall(r"^Tests: .*|pytest tests/.*", TEXT, re.MULTILINE)
    paths = [path for line in lines for path in re.findall(r"tests/[\w/]+(?:\.py)?", line)]
    assert len(paths) > len(lines)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_named_make_targets_exist():
    """Each `make TARGET` in backticks or in a block of commands."""
    targets = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", TEXT))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert len(targets) > 5
    assert targets <= known
