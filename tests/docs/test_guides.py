"""Code of the guides that does nothing by itself: what it defines works with the service."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from starlette.datastructures import Headers

from sd35.content_filter import image_decision, prompt_decision
from sd35.jobs.webhooks.signing import headers
from sd35.request import Request
from tests.support.documentation import ROOT, Page

SECRET, KEY, BODY = "whsec_" + "YWJj" * 8, b"abc" * 8, b'{"status": "succeeded"}'


def defined(guide: str, name: str) -> Any:
    """Return a function or a class that a Python block of a guide defines."""
    blocks = Page.read(ROOT / "docs" / "guide" / f"{guide}.md").blocks
    (code,) = [block.code for block in blocks if block.language == "python" and f" {name}" in block.code]
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102  our own documentation
    return namespace[name]


def is_authentic(sent: Mapping[str, str], body: bytes = BODY) -> bool:
    """Call the guide's function."""
    found: bool = defined("jobs", "is_authentic")(SECRET, Headers(dict(sent)), body)
    return found


def test_a_signed_webhook_is_authentic():
    """One that the service signed now."""
    assert is_authentic(headers(KEY, "a job", time.time(), BODY))


@pytest.mark.parametrize("name", ["Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"])
def test_a_changed_webhook_is_not(name: str):
    """Neither with another header, nor without it."""
    sent = headers(KEY, "a job", time.time(), BODY)
    assert not is_authentic({**sent, name: sent[name] + "0"})
    assert not is_authentic({each: value for each, value in sent.items() if each != name})


def test_another_body_or_key_or_an_old_webhook_is_not_authentic():
    """All of them are signed."""
    assert not is_authentic(headers(KEY, "a job", time.time(), BODY), BODY + b" ")
    assert not is_authentic(headers(KEY + b"d", "a job", time.time(), BODY))
    assert not is_authentic(headers(KEY, "a job", time.time() - 600, BODY))


def test_the_content_filter_decides():
    """It refuses a prompt, and blurs an image."""
    content_filter = defined("keys-and-limits", "NoBlood")()
    request = Request("a cat", "", 64, 64, 8, 1.0, 7, "sd35-mini", "0" * 64, "onnx/float32")
    dark, light = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 200, np.uint8)
    assert prompt_decision(content_filter, request) == "allow"
    assert content_filter.check_prompt("Blood", "") == "refuse"
    assert [image_decision(content_filter, pixels, request) for pixels in (dark, light)] == ["blur", "allow"]
