"""The fenced blocks of the documentation work, in the order of their page.

- `console`: lines that begin with `$ ` are commands, which continue after a backslash, or on lines that begin with `>`.
  Other lines are output, which is not compared. All commands of a page run in one Bash session, in an empty folder,
  with `sd35`, `python` and `.venv/bin` of this environment. 127.0.0.1:8000 is a server of the embedded model.
- `python`: a script in the same folder, with the same server.
- `toml`, `json`, `yaml`: parsed; TOML has to be valid settings.
- `text` and `mermaid`: not run.
- After `<!-- not run: REASON -->`, a block is not run. Marked TOML is parsed, but need not be settings.
"""

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from sd35.settings import load_settings
from tests.support.code_blocks import Command, commands_of, run_page
from tests.support.documentation import ROOT, RUN_PAGES, Block, Page

_RUN = ("console", "python")
_PARSED = ("toml", "json", "yaml")
_SHOWN = ("text", "mermaid")


def _check(blocks: list[Block], directory: Path) -> None:
    """Check all blocks of a page."""
    for block in blocks:
        allowed = (*_RUN, *_PARSED, *_SHOWN)
        assert block.language in allowed, f"line {block.line}: got language {block.language!r}; allowed: {allowed}"
        assert block.reason != "", f"line {block.line}: the mark gives no reason; write <!-- not run: REASON -->"
        _parse(block, directory)
    if to_run := [block for block in blocks if block.language in _RUN and block.reason is None]:
        run_page(to_run, directory)


def _parse(block: Block, directory: Path) -> None:
    try:
        if block.language == "toml":
            tomllib.loads(block.code)
        if block.language == "toml" and block.reason is None:
            path = directory / "settings.toml"
            path.write_text(block.code, encoding="utf-8")
            load_settings(config=path)
        if block.language == "json" and block.reason is None:
            json.loads(block.code)
        if block.language == "yaml" and block.reason is None:
            list(yaml.safe_load_all(block.code))
    except Exception as error:
        raise AssertionError(f"line {block.line}: {error}") from error


def _page(*lines: str) -> list[Block]:
    return Page("\n".join(lines)).blocks


@pytest.mark.parametrize("path", RUN_PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_work(path: Path, tmp_path: Path):
    """Each block of the page, in order."""
    _check(Page.read(path).blocks, tmp_path)


def test_variables_and_files_last_for_the_page(tmp_path: Path):
    """Commands share a session, and Python blocks the folder; output is not run, and `>` continues a command."""
    blocks = _page(
        *(
            "```console",
            "$ NAME=a \\",
            '    && echo "$NAME" > name',
            "false",
            "$ cat > two <<END",
            "> $NAME",
            "> END",
            "```",
        ),
        *("```python", "assert open('name').read() == open('two').read() == 'a\\n'", "```"),
        *("```console", '$ test "$NAME" = a', "$ .venv/bin/sd35 --version", "$ sd35 --version", "```"),
    )
    _check(blocks, tmp_path)


def test_the_server_is_there(tmp_path: Path):
    """At the address that the page writes, with its data where `sd35` looks for it."""
    _check(_page("```console", "$ curl -sf http://127.0.0.1:8000/readyz", "$ sd35 storage verify", "```"), tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("```console", "$ true", "$ echo why; false", "$ true", "```"),
            r"line 3: \$ echo why; false\n.*ended with 1:\nwhy",
        ),
        (("```console", "$ echo 'open", "```"), "(?s)line 2: .*ended with [12]:"),
        (("```python", "1 / 0", "```"), r"(?s)line 1: .*ZeroDivisionError"),
        (("```toml", "prot = 1", "```"), "line 1: .*unknown key 'prot'"),
        (("<!-- not run: settings of something else -->", "```toml", "prot = ", "```"), "line 2: .*nvalid"),
        (("```json", "{", "```"), "line 1: "),
        (("```yaml", "{", "```"), "line 1: "),
        (("```bash", "true", "```"), "line 1: got language 'bash'; allowed: .*console"),
        (("```", "true", "```"), "line 1: got language ''"),
        (("<!-- not run: -->", "", "```console", "$ false", "```"), "line 3: the mark gives no reason"),
    ],
)
def test_a_block_that_does_not_work_is_named(tmp_path: Path, lines: tuple[str, ...], message: str):
    """With its line, the command, and the output."""
    with pytest.raises(AssertionError, match=message):
        _check(_page(*lines), tmp_path)


def test_a_command_that_does_not_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a time limit for each command."""
    monkeypatch.setattr("tests.support.code_blocks.TIMEOUT_S", 0.2)
    with pytest.raises(AssertionError, match=r"line 2: \$ sleep 100\nran longer than 0\.2 s"):
        _check(_page("```console", "$ sleep 100", "```"), tmp_path)


def test_marked_blocks_are_not_run(tmp_path: Path):
    """Neither directly after the mark, nor after a blank line."""
    marked = ("<!-- not run: needs a GPU -->", "```console", "$ false", "```", "<!-- not run: a part -->", "")
    _check(_page(*marked, "```json", "...", "```", "```text", "anything", "```"), tmp_path)


def test_output_is_no_command():
    """A line that begins with `> ` continues a command only if no output came between."""
    (block,) = _page("```console", "$ one", "out", "> out", "$ two", "```")
    assert commands_of(block) == [Command("one", 2), Command("two", 5)]
