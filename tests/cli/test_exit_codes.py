"""Exit codes: Ctrl-C at any moment, outputs that cannot be written, and errors of the system."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from sd35.cli.exit_codes import errors_as_lines, exit_when_interrupted
from sd35.errors import CheckpointError

TIMEOUT_S = 120
RUN = "from sd35.cli import main; main()"
# Counts the modules that Python looks for, and sends this process a signal at a given one.
AT_AN_IMPORT = """
import atexit, os, signal, sys
number, signal_at = int(sys.argv.pop(1)), int(sys.argv.pop(1))
class Watch:
    searches = 0
    def find_spec(self, *_):
        Watch.searches += 1
        if Watch.searches == signal_at:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Watch())
"""
NEVER = 10**9
FIRST = 4  # until then, Python looks for `sd35` and `sd35.cli`, and no code of this project runs


def run(
    code: str,
    *arguments: str,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
    cwd: Path | None = None,
    **variables: str,
) -> "subprocess.CompletedProcess[str]":
    """Run code and then the command in a process without settings of the user."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SD35_", "HF_"))}
    return subprocess.run(
        [sys.executable, "-c", code + RUN, *arguments],
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=clean | variables,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def imports() -> int:
    """The number of modules that `sd35 models` looks for."""
    code = AT_AN_IMPORT + "atexit.register(lambda: print(Watch.searches, file=sys.stderr))\n"
    result = run(code, str(int(signal.SIGINT)), str(NEVER), "models")
    assert result.returncode == 0, result.stderr
    return int(result.stderr)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_ctrl_c_while_modules_are_imported_exits_with_130_without_output(imports: int, share: float):
    """At any moment of the start."""
    result = run(AT_AN_IMPORT, str(int(signal.SIGINT)), str(max(FIRST, int(share * imports))), "models")
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_sigterm_while_modules_are_imported_ends_the_process(imports: int, share: float):
    """By the signal itself, without a traceback."""
    result = run(AT_AN_IMPORT, str(int(signal.SIGTERM)), str(max(FIRST, int(share * imports))), "models")
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGTERM, "", "")


def test_an_error_of_a_library_that_is_caused_by_ctrl_c_exits_with_130():
    """Extensions that are interrupted while they are imported raise an ImportError from the KeyboardInterrupt."""
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    with pytest.raises(SystemExit) as end, exit_when_interrupted():
        raise error
    assert end.value.code == 130


@pytest.mark.parametrize("error", [ValueError("a mistake"), OSError(errno.ENOENT, "No such file or directory")])
def test_a_bug_keeps_its_traceback(error: Exception):
    """Only errors that no code of this project causes become one line."""
    with pytest.raises(type(error)), exit_when_interrupted(), errors_as_lines():
        raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CheckpointError("it is broken"), 1, "sd35: it is broken\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "sd35: No space left on device\n"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), 1, "sd35: /data/x: Read-only file system\n"),
    ],
)
def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str):
    """Errors of this project, and errors of the system, with the file if they name one."""
    with pytest.raises(SystemExit) as end, errors_as_lines():
        raise error
    assert (end.value.code, capsys.readouterr().err) == (code, line)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("models",), ("models", "--json"), ("--help",), ("--version",)])
def test_a_full_disk_at_stdout_is_one_line(arguments: tuple[str, ...], unbuffered: str):
    """Python may notice it when it prints, or only when it exits."""
    with Path("/dev/full").open("w") as full:
        result = run("", *arguments, stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert (result.returncode, result.stderr) == (1, "sd35: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("models",), ("models", "--json"), ("--help",), ("--version",)])
def test_a_closed_pipe_at_stdout_exits_with_1_without_output(arguments: tuple[str, ...], unbuffered: str):
    """As in `sd35 models | head -0`."""
    read, write = os.pipe()
    os.close(read)
    try:
        result = run("", *arguments, stdout=write, PYTHONUNBUFFERED=unbuffered)
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_an_error_keeps_its_exit_code_if_stderr_cannot_be_written():
    with Path("/dev/full").open("w") as full:
        assert run("", "pull", "nothing", stderr=full).returncode == 2
    code = "import os, sys; os.close(2); os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])"
    closed = [sys.executable, "-c", code]
    result = subprocess.run([*closed, RUN, "pull", "nothing"], capture_output=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stdout) == (2, b"")


def test_a_file_name_that_is_not_utf8_is_printed_escaped(tmp_path: Path):
    name = os.fsdecode(b"cat-\xff.png")
    size = ("--steps", "1", "--width", "64", "--height", "64", "--seed", "1")
    result = run("", "generate", "a cat", "-o", name, *size, cwd=tmp_path)
    assert result.stderr == ""
    assert result.stdout.startswith("cat-\\udcff.png: seed 1")
    assert (tmp_path / name).exists()
