"""Validation of the URLs and signatures of webhooks."""

import base64

import pytest

from sd35.errors import InvalidRequest, InvalidSetting
from sd35.jobs.webhooks.signing import headers, secret_of
from sd35.jobs.webhooks.webhooks import check_url
from sd35.settings import load_settings
from tests.jobs.webhooks.test_addresses import PRIVATE

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
CLOSED = load_settings({"webhook_secret": SECRET})
OPEN = load_settings({"webhook_secret": SECRET, "webhook_allow_private": True})


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook?token=1",
        "https://example.com:8443",
        "https://EXAMPLE.com./",
        "https://bücher.example/",
        "https://1.1.1.1/",
        "https://[2606:4700:4700::1111]/",
    ],
)
def test_public_https_urls_are_accepted(url: str):
    """By name or by IP address."""
    check_url(url, CLOSED)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "https://",
        "https:///hook",
        "ftp://example.com",
        "file:///etc/passwd",
        "http://example.com",
        "https://me:word@example.com",
        "https://me@example.com",
        "https://example.com:99999",
        "https://exa mple.com",
        "https://example.com/\x00",
        "https://example.com/" + "x" * 2000,
        "https://localhost/",
        "https://LOCALHOST./",
        "https://db.internal/",
        "https://127.1/",
        "https://192.0.192/",
        f"https://{'a' * 64}.example/",
        "https://hooks..example/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://[::ffff:127.0.0.1]/",
        *(f"https://{f'[{address}]' if ':' in address else address}/" for address in PRIVATE),
    ],
)
def test_other_urls_are_refused(url: str):
    with pytest.raises(InvalidRequest, match=r"^webhook: got .*; allowed: https URLs to hosts with a public"):
        check_url(url, CLOSED)


def test_private_urls_are_accepted_if_they_are_allowed():
    """Plain HTTP, too. Malformed URLs are still refused."""
    for url in ("http://127.0.0.1:9000/hook", "http://localhost/", "https://10.0.0.1"):
        check_url(url, OPEN)
    with pytest.raises(InvalidRequest, match="allowed: https or http URLs to hosts, without"):
        check_url("http://me:word@localhost", OPEN)


def test_without_a_secret_webhooks_are_refused():
    """Receivers could not verify unsigned webhooks."""
    with pytest.raises(InvalidRequest, match="the operator has not set SD35_WEBHOOK_SECRET"):
        check_url("https://example.com", load_settings())
    assert secret_of(load_settings()) is None


def test_signatures_are_those_of_standard_webhooks():
    """The secret, the message and the signature come from the libraries of that specification."""
    secret = secret_of(load_settings({"webhook_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}))
    assert secret is not None
    assert headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330.9, b'{"test": 2432232314}') == {
        "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "Webhook-Timestamp": "1614265330",
        "Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("secret", ["hush", "whsec_hush", "whsec_" + "A" * 24, "whsec_ü" * 9, "A" * 44])
def test_the_error_of_a_malformed_secret_does_not_contain_it(secret: str):
    """It has a command that creates a valid one."""
    with pytest.raises(InvalidSetting, match="openssl rand -base64 32") as error:
        secret_of(load_settings({"webhook_secret": secret}))
    assert secret not in str(error.value)
