"""The user interface of a service with keys, without SD3.5, and in another process."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from sd35.cli.main import main
from tests.support.browser import EXIT_TIMEOUT_S, Watched, fill, generate, page_of
from tests.support.server_process import SD35, TIMEOUT_S, serving


def new_key(data: Path) -> str:
    """Create a key and return its secret."""
    command = [*SD35, "keys", "add", "someone", "--data-dir", str(data)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout.strip()


def test_a_service_with_keys_makes_the_page_ask_for_one(
    new_page: Callable[..., Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The page shows the key field, an error for a wrong key, and a warning that SD3.5 is not served.

    SIGTERM ends the server quickly even if a tab is open, and no file of the page is left.
    """
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    secret = new_key(tmp_path / "data")
    cache = tmp_path / "cache"
    with serving(tmp_path / "log", "--ui", "auto", "--checkpoint", "auto", "--cache-dir", str(cache)) as served:
        page = new_page(f"http://127.0.0.1:{served.port}")
        key = page.get_by_label("API key")
        expect(key).to_have_attribute("type", "password")
        expect(page.get_by_role("status").filter(has_text="This service needs an API key.")).to_be_visible()
        key.fill("sd35_wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("alert")).to_contain_text("This API key is not valid.")
        key.fill(secret)
        key.press("Enter")
        expect(
            page.get_by_role("status").filter(has_text="This is sd35-mini, not Stable Diffusion 3.5.")
        ).to_be_visible()
        fill(page, "a cat", steps=1)
        generate(page)
        assert list(cache.glob("ui/*/*/*.png"))
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(EXIT_TIMEOUT_S) == 0
    assert list(cache.glob("ui/*")) == []
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert secret not in log


def test_another_process_offers_the_same_page(watched: Watched, new_page: Callable[..., Page], tmp_path: Path):
    """`sd35 ui --server` generates images with a service that it reaches over HTTP.

    Its link leads to that service's documentation. When it ends, its unfinished jobs are cancelled.
    """
    with page_of(watched.address, tmp_path) as address:
        page = new_page(address)
        fill(page, "a rocket", steps=1)
        generate(page)
        link = page.get_by_role("link", name="API").evaluate("link => link.href")
        assert page.request.get(link).url == f"{watched.address}/docs"
        fill(page, "a rocket", steps=150, count=8)
        page.get_by_role("button", name="Generate").click()
        page.locator("#canvas .card img").first.wait_for()
    while (found := {job["status"] for job in watched.jobs()[:8]}) & {"queued", "running"}:
        pass
    assert "cancelled" in found


@pytest.mark.parametrize(
    "server",
    [
        "gpu.example:8000",
        "ftp://gpu.example",
        "http://",
        "http://gpu.example/?a",
        "http://a:b@gpu.example",
        "http://[::1",
        "http://gpu.example:99999",
        "http://gpu\u200b.example",
    ],
)
def test_an_invalid_server_address_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The error is one line, with an example of an allowed address."""
    monkeypatch.setattr(sys, "argv", ["sd35", "ui", "--server", server])
    with pytest.raises(SystemExit) as end:
        main()
    allowed = "an http or https address without a password or query, such as http://127.0.0.1:8000"
    said = f"sd35: --server: got {server!r}; allowed: {allowed}\n"
    assert (end.value.code, *capsys.readouterr()) == (2, "", said)


@pytest.mark.parametrize(
    ("proxy", "cache", "says"),
    [
        ("http://me:secret@[::1", "cache", "ALL_PROXY: got an address that cannot be used; allowed: one"),
        ("", "file/cache", "cache_dir: "),
    ],
)
def test_an_unusable_proxy_or_cache_directory_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str, cache: str, says: str
):
    """Gradio is not loaded before."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALL_PROXY", proxy)
    command = [*SD35, "ui", "--server", "http://127.0.0.1:9", "--port", "0", "--cache-dir", str(tmp_path / cache)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"sd35: {says}")
    assert "secret" not in result.stderr
