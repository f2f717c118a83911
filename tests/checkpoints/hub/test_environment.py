"""A malformed variable of the hub's library is named before any request is sent."""

import os
from pathlib import Path

import h11
import httpx2
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from sd35.backends.registry import backend_module
from sd35.checkpoints.hub import cache
from sd35.checkpoints.hub.download import fetch
from sd35.checkpoints.hub.environment import hub_token
from sd35.checkpoints.hub.plan import plan_download
from sd35.checkpoints.registry import RegisteredCheckpoint
from sd35.errors import DownloadFailed, InvalidSetting
from sd35.planning.auto import candidates
from sd35.planning.plan import AvailableMemory
from sd35.settings import load_settings
from tests.checkpoints.conftest import REPOSITORY, REVISION
from tests.support.hub_server import Hub

ENTRY = RegisteredCheckpoint("small", REPOSITORY, REVISION)
UNSENDABLE = ["hf_\u200bmine", "hf_\x01mine", "hf_mi ne", "hf_\xe9", "hf_\x7f", "hf_\udcff"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("token", UNSENDABLE)
def test_an_unsendable_token_is_named_by_variable_and_character(monkeypatch: pytest.MonkeyPatch, token: str):
    """The error shows the character and its position, but not the token."""
    monkeypatch.setenv("HF_TOKEN", token)
    for call in (lambda: plan_download(ENTRY), lambda: fetch_nothing(ENTRY)):
        with pytest.raises(
            InvalidSetting, match=r"HF_TOKEN: got a token with '.*' as character [46]; allowed: visible"
        ) as raised:
            call()
        assert "hf_" not in str(raised.value)
        assert str(raised.value).isascii()
        assert "\n" not in str(raised.value)


def fetch_nothing(entry: RegisteredCheckpoint) -> Path:
    """Call `fetch` with a plan without missing files, which also reads the token."""
    from sd35.checkpoints.hub.plan import DownloadPlan

    return fetch(DownloadPlan(entry, (), (), 0), lambda _: None)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("content", [b"hf_\xe2\x80\x8bmine", b"hf_\xff\xfemine"])
def test_an_unsendable_token_file_is_named(tmp_path: Path, content: bytes):
    """Characters that cannot be sent and invalid UTF-8 raise the same error."""
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(InvalidSetting, match=r"token: got a token with|token's file .*token.* is not UTF-8"):
        plan_download(ENTRY)


@pytest.mark.usefixtures("hub")
def test_auto_refuses_an_unsendable_token(monkeypatch: pytest.MonkeyPatch):
    """The check of tokens also applies to the checkpoint `auto`."""
    monkeypatch.setenv("HF_TOKEN", UNSENDABLE[0])
    with pytest.raises(InvalidSetting, match="HF_TOKEN: got a token"):
        list(candidates(load_settings({"checkpoints": ("auto",)}), AvailableMemory("cpu", 2**40, 2**40)))


@given(token=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_an_accepted_token_can_be_sent(token: str):
    """HTTP/1.1, as implemented by h11, accepts every token that passes the check."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("HF_TOKEN", token)
        context.setattr(constants, "HF_TOKEN_PATH", os.devnull)
        try:
            found = hub_token()
        except InvalidSetting:
            return
        if found is not None:
            request = httpx2.Request("GET", "http://hub.invalid/", headers={"Authorization": f"Bearer {found}"})
            h11.Connection(h11.CLIENT).send(h11.Request(method="GET", target="/", headers=request.headers.raw))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http:",
        "hub.invalid",
        "ftp://hub.invalid",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:abc",
        "http://a\u200bb",
    ],
)
def test_an_invalid_endpoint_is_named(monkeypatch: pytest.MonkeyPatch, endpoint: str):
    """The error has the variable, its value in ASCII, and an example."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(InvalidSetting, match=r"HF_ENDPOINT: got '.*'; allowed: an address such as https://") as raised:
        plan_download(ENTRY)
    assert str(raised.value).isascii()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", r"HF_HUB_DOWNLOAD_TIMEOUT: got 'soon'; allowed: a whole number of seconds"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "-1", r"HF_HUB_DOWNLOAD_TIMEOUT: got '-1'"),
        ("HF_HUB_ETAG_TIMEOUT", "9" * 5000, r"HF_HUB_ETAG_TIMEOUT: got '9+\.\.\."),
        ("HF_ENDPOINT", "http://[::1", r"HF_ENDPOINT: got 'http://\[::1'; allowed: an address"),
    ],
)
def test_a_variable_that_breaks_the_librarys_import_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
):
    """Both the cache and the `diffusers` backend import the library."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting, match=says):
        cache.cache_status(ENTRY)
    with pytest.raises(InvalidSetting, match=says):
        backend_module("diffusers")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HTTPS_PROXY", "socks9://me:secret@proxy", "HTTPS_PROXY: got an address that cannot be used"),
        ("HTTP_PROXY", "http://me:secret@[::1", "HTTP_PROXY: got an address that cannot be used"),
        ("ALL_PROXY", "http://me:secret@proxy:99999", "ALL_PROXY: got an address that cannot be used"),
        ("ALL_PROXY", "socks5://me:secret@proxy", r"ALL_PROXY: .* \(SOCKS 5 needs the package socksio\)"),
        (
            "SSL_CERT_FILE",
            "/nowhere/certificates",
            "SSL_CERT_FILE: got '/nowhere/certificates'; allowed: an existing file",
        ),
        ("SSL_CERT_DIR", "/nowhere", "SSL_CERT_DIR: got '/nowhere'; allowed: an existing directory"),
    ],
)
def test_an_invalid_proxy_or_certificate_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
):
    """Passwords of proxies are not shown."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting, match=says) as raised:
        plan_download(ENTRY)
    assert "secret" not in str(raised.value)


def test_an_invalid_certificate_file_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error names the variable, not the cache."""
    (tmp_path / "none.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(DownloadFailed, match=r"the certificates of SSL_CERT_FILE or SSL_CERT_DIR cannot be read"):
        plan_download(ENTRY)
    assert hub.asked == []


@pytest.mark.usefixtures("hub")
def test_an_unsendable_user_agent_is_named(monkeypatch: pytest.MonkeyPatch):
    """HF_HUB_USER_AGENT_ORIGIN is part of a header of every request."""
    monkeypatch.setattr(constants, "HF_HUB_USER_AGENT_ORIGIN", "mine\u200b")
    with pytest.raises(InvalidSetting, match=r"HF_HUB_USER_AGENT_ORIGIN: got '\\u200b' as character 5"):
        plan_download(ENTRY)
