"""What is written to a terminal does not steer it."""

import os
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.telemetry.logs import printable

# Each line of the log in its own way: structlog's, the standard library's, a bound value, an error's message.
LOGGING = r"""
import logging, sys
import structlog
from sd35.telemetry.logs import configure_logs
configure_logs(sys.argv[1])
bad = "\x1b[2J\x07\x9b31m\x7f\r\nforged \u202e \ud800"
log = structlog.get_logger()
log.info("request", path=bad, client=bad, nested=[bad, {"deep": bad}])
log.info(bad)
structlog.contextvars.bind_contextvars(request_id=bad)
logging.getLogger("uvicorn.error").warning("invalid path %s", bad)
for raising in (ValueError(bad), KeyError(bad)):
    try:
        raise raising
    except Exception:
        log.exception("unexpected", path=bad)
        logging.getLogger("other").exception("unexpected")
logging.getLogger("other").info(bad, stack_info=True)
"""

NOT_SHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
ALLOWED = {"console": "", "json": "\x7f"}  # JSON escapes all but DEL, which does nothing
FORGED = {"console": 2, "json": 0}  # lines of a traceback, for an error's message keeps its line breaks


@given(st.text())
def test_nothing_unprintable_is_left(text: str):
    """Whatever the text, each character that stays is one to be seen; printable text stays as it is."""
    said = printable(text)
    assert said.isprintable()
    assert (said == text) == text.isprintable()
    assert printable(text, keep="\n\t").replace("\n", "").replace("\t", "").isprintable()


def test_escapes_are_written_as_python_writes_them():
    """So that they can be told apart and looked up."""
    assert printable("a\x1b[2J\x9b\u202e\ud800 \n") == r"a\x1b[2J\x9b\u202e\ud800 \n"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_log_line_carries_control_characters(log_format: str):
    """From a request's path, a nested value, an error's message, by structlog or the standard library."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1"}
    command = [sys.executable, "-c", LOGGING, log_format]
    run = subprocess.run(command, capture_output=True, check=True, env=environment)
    said = re.sub(r"\x1b\[[0-9]+m", "", run.stderr.decode())  # structlog's own colours
    assert {each for each in said if unicodedata.category(each) in NOT_SHOWN} <= {"\n", " ", *ALLOWED[log_format]}
    assert sum(line.startswith("forged") for line in said.splitlines()) == FORGED[log_format]
    assert said.count("invalid path") == 1
    assert "Traceback" in said
