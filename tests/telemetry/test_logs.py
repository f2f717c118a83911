"""Control characters in logs: a terminal would obey them."""

import os
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.telemetry.logs import printable

# Logs control characters in every way: by structlog, by the standard library, as a bound value, as an error's message.
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
ALLOWED = {"console": "", "json": "\x7f"}  # JSON does not escape DEL, which terminals ignore
FORGED = {"console": 2, "json": 0}  # in tracebacks, messages of errors keep their line breaks


@given(st.text())
def test_printable_escapes_exactly_the_unprintable_characters(text: str):
    """Printable text stays as it is."""
    escaped = printable(text)
    assert escaped.isprintable()
    assert (escaped == text) == text.isprintable()
    assert printable(text, keep="\n\t").replace("\n", "").replace("\t", "").isprintable()


def test_escapes_have_pythons_notation():
    assert printable("a\x1b[2J\x9b\u202e\ud800 \n") == r"a\x1b[2J\x9b\u202e\ud800 \n"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_log_lines_have_no_control_characters(log_format: str):
    """Whether they come from a path, a nested value or an error, by structlog or by the standard library."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1"}
    command = [sys.executable, "-c", LOGGING, log_format]
    run = subprocess.run(command, capture_output=True, check=True, env=environment)
    text = re.sub(r"\x1b\[[0-9]+m", "", run.stderr.decode())  # structlog's own colours
    assert {each for each in text if unicodedata.category(each) in NOT_SHOWN} <= {"\n", " ", *ALLOWED[log_format]}
    assert sum(line.startswith("forged") for line in text.splitlines()) == FORGED[log_format]
    assert text.count("invalid path") == 1
    assert "Traceback" in text
