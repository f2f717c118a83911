"""Runs the fenced blocks of a page: one Bash session and one server for all of them."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Timer
from typing import NamedTuple

import sd35
from tests.support.documentation import Block
from tests.support.server_process import serving

TIMEOUT_S = 120
_BASH = shutil.which("bash") or "bash"
PORT = re.compile(r"\b8000\b")
# Our own variables would change what the commands do, and credentials do not belong in a test.
_NOT_INHERITED = re.compile(r"SD35_.*|XDG_.*|HF_.*")


class Command(NamedTuple):
    """A command of a console block, and the line of the page that it begins on."""

    text: str
    line: int


def commands_of(block: Block) -> list[Command]:
    """Return the commands of a console block, each with its continuation lines: after a backslash, or after `>`."""
    commands: list[Command] = []
    is_command = False  # whether the line above is a command's
    for number, line in enumerate(block.code.splitlines(), block.line + 1):
        if is_command and (commands[-1].text.endswith("\\") or line.startswith(">")):
            text, first = commands[-1]
            commands[-1] = Command(f"{text}\n{line.removeprefix('>').removeprefix(' ')}", first)
        elif is_command := line.startswith("$ "):
            commands.append(Command(line.removeprefix("$ "), number))
    return commands


def run_page(blocks: list[Block], directory: Path) -> None:
    """Run console and Python blocks in order, in a new folder below `directory`.

    Raises:
        AssertionError: A command failed, or ran longer than `TIMEOUT_S`. The message has its line and its output.
    """
    here, home = directory / "here", directory / "home"
    here.mkdir()
    home.mkdir()
    environment = _environment(directory, home)
    (here / ".venv").mkdir()
    (here / ".venv" / "bin").symlink_to(_commands(directory))
    with ExitStack() as stack:
        port = str(stack.enter_context(serving(directory / "server.log")).port)
        session = stack.enter_context(_session(here, environment))
        for block in blocks:
            code = PORT.sub(port, block.code)
            if block.language == "python":
                script = here / f".line-{block.line}.py"
                script.write_text(code, encoding="utf-8")
                session.run(Command(f"python {script.name}", block.line))
            else:
                for command in commands_of(Block(block.language, code, block.line)):
                    session.run(command)


def _environment(directory: Path, home: Path) -> Mapping[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not _NOT_INHERITED.fullmatch(name)}
    return {
        **inherited,
        "HOME": str(home),
        "PATH": f"{_commands(directory)}:{inherited['PATH']}",
        "PYTHONPATH": str(Path(sd35.__file__).parents[1]),
        "SD35_DATA_DIR": str(directory / "data"),  # the server's
    }


def _commands(directory: Path) -> Path:
    """Return a folder with `sd35`, `python` and `python3` of this environment."""
    folder = directory / "bin"
    if not folder.exists():
        folder.mkdir()
        start = {"sd35": ' -c "from sd35.cli import main; main()"', "python": "", "python3": ""}
        for name, arguments in start.items():
            path = folder / name
            path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{arguments} "$@"\n')
            path.chmod(0o755)
    return folder


class _Session:
    """A Bash process that gets one command after the other, and ends at the first that fails."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._end = f"end-{uuid.uuid4()}"

    def run(self, command: Command) -> None:
        """Run a command to its end."""
        assert self._process.stdin
        assert self._process.stdout
        # `eval` reads the command as a whole, so that it cannot read the commands after it from standard input.
        self._process.stdin.write(f"eval {shlex.quote(command.text)} </dev/null\nprintf '\\n%s\\n' {self._end}\n")
        self._process.stdin.flush()
        output: list[str] = []
        with _kill_after(TIMEOUT_S, self._process.pid) as has_run_out:
            for line in self._process.stdout:
                if line.strip() == self._end:
                    return
                output.append(line)
        how = f"ran longer than {TIMEOUT_S} s" if has_run_out.is_set() else f"ended with {self._process.wait()}"
        raise AssertionError(f"line {command.line}: $ {command.text}\n{how}:\n{''.join(output)}")


@contextmanager
def _kill_after(timeout_s: float, group: int) -> Iterator[Event]:
    """Kill a process group if the block takes longer. The event says whether it did."""
    has_run_out = Event()

    def kill() -> None:
        has_run_out.set()
        _kill(group)

    timer = Timer(timeout_s, kill)
    timer.start()
    try:
        yield has_run_out
    finally:
        timer.cancel()


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@contextmanager
def _session(here: Path, environment: Mapping[str, str]) -> Iterator[_Session]:
    with subprocess.Popen(
        [_BASH, "--norc", "--noprofile", "-euo", "pipefail"],
        cwd=here,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield _Session(process)
        finally:
            _kill(process.pid)
