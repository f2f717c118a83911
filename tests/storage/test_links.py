"""Signed links: signatures, expiry, and the secret."""

import errno
import hashlib
import hmac
import os
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.errors import InvalidRequest, InvalidSetting, LinkRefused
from sd35.settings import load_settings
from sd35.storage.links import MAX_LIFETIME_S, Links, expiry

NOW_S = 1_800_000_000.5
LINKS = Links(b"a secret of the test")
PATH = "/v1/artifacts/" + "ab" * 32


def follow(link: str, now_s: float = NOW_S, links: Links = LINKS) -> None:
    """Check a link as a server does that receives it."""
    parts = urlsplit(link)
    links.check(parts.path, parse_qsl(parts.query, keep_blank_values=True), now_s)


def test_a_link_is_valid_until_it_expires():
    link = LINKS.sign(PATH, [("format", "webp")], expiry(NOW_S, 60), "http://127.0.0.1:8000/")
    assert link.startswith(f"http://127.0.0.1:8000{PATH}?format=webp&expires=1800000060&signature=")
    follow(link)
    follow(link, NOW_S + 59)
    with pytest.raises(LinkRefused, match="expires: this link has expired"):
        follow(link, NOW_S + 60)


def test_the_signature_can_be_recomputed_from_its_definition():
    """It is the HMAC-SHA256 of the text that the documentation defines."""
    link = LINKS.sign(PATH, [], 1_800_000_060, "http://host")
    signed = f"sd35 link 1\n{PATH}?expires=1800000060"
    assert link.endswith("&signature=" + hmac.digest(b"a secret of the test", signed.encode(), hashlib.sha256).hex())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("abab", "abac"),
        ("format=webp", "format=png"),
        ("format=webp&", ""),
        ("expires=1800000060", "expires=1800009999"),
        ("expires=1800000060", "expires=1800000060&expires=1800009999"),
        ("?", "?metadata=1&"),
        ("signature=", "signature=0"),
        ("signature=", "signature=&signature="),
        ("&signature=", "&other="),
        ("signature=", "signature=%F0%9F%90%B1"),
        ("/v1/artifacts", "/v1/jobs"),
    ],
)
def test_a_changed_link_is_refused(before: str, after: str):
    """Any change of the path, of the parameters and their order, or of the expiry time."""
    link = LINKS.sign(PATH, [("format", "webp")], 1_800_000_060, "http://host")
    assert before in link
    with pytest.raises(LinkRefused, match="signature: not valid for this URL"):
        follow(link.replace(before, after, 1))


@given(st.text(), st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_unsigned_urls_are_refused(path: str, parameters: list[tuple[str, str]]):
    """No input raises another error."""
    with pytest.raises(LinkRefused):
        LINKS.check(path, parameters, NOW_S)


@given(
    st.text(st.characters(codec="utf-8"), max_size=9),
    st.lists(
        st.tuples(st.sampled_from(["format", "a b&"]), st.text(st.characters(codec="utf-8"), max_size=9)), max_size=3
    ),
)
def test_any_signed_url_is_accepted(path: str, parameters: list[tuple[str, str]]):
    """Any path and parameters survive URL encoding. Another secret does not verify the link."""
    link = LINKS.sign(f"/{path}", parameters, 1_900_000_000, "https://host/behind/")
    query = parse_qsl(urlsplit(link).query, keep_blank_values=True)
    assert link.startswith(f"https://host/behind/{quote(path)}?")
    LINKS.check(f"/{path}", query, NOW_S)
    with pytest.raises(LinkRefused, match="signature"):
        Links(b"another secret").check(f"/{path}", query, NOW_S)


def test_a_link_lasts_an_hour_by_default_and_at_most_a_week():
    assert expiry(NOW_S, None) == 1_800_003_600
    assert expiry(NOW_S, MAX_LIFETIME_S) == 1_800_000_000 + 7 * 86_400
    for wrong in (0, -1, MAX_LIFETIME_S + 1):
        with pytest.raises(InvalidRequest, match=f"expires_in_s: got {wrong}; allowed: 1 to 604800"):
            expiry(NOW_S, wrong)


def test_links_begin_with_the_public_url(tmp_path: Path):
    """Whatever the URL of the request is."""
    settings = load_settings({"data_dir": tmp_path, "public_url": "https://example.com/sd35/"})
    assert (
        Links.from_settings(settings)
        .sign("/a", [], 1, "http://10.0.0.1:8000")
        .startswith("https://example.com/sd35/a?expires=1&")
    )


def test_links_survive_a_restart_and_only_its_user_reads_the_secret(tmp_path: Path):
    """The secret is generated once, with mode 0600. Another data directory has another secret."""
    settings = load_settings({"data_dir": tmp_path / "here"})
    link = Links.from_settings(settings).sign(PATH, [], 1_900_000_000, "http://host")
    follow(link, links=Links.from_settings(settings))
    secret = tmp_path / "here" / "link-secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_bytes()) == 64
    with pytest.raises(LinkRefused):
        follow(link, links=Links.from_settings(load_settings({"data_dir": tmp_path / "elsewhere"})))


def test_a_configured_secret_is_used_and_none_stored(tmp_path: Path):
    """Services with the same secret accept each other's links."""
    one, other = (
        Links.from_settings(load_settings({"data_dir": tmp_path / name, "link_secret": "of sixteen chars"}))
        for name in ("1", "2")
    )
    follow(one.sign(PATH, [], 1_900_000_000, "http://host"), links=other)
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_cannot_be_stored_is_an_error(tmp_path: Path):
    """The error names the setting, the file and the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidSetting, match=r"link_secret: .*link-secret \((Not a directory|File exists)\); set link_secret"
    ):
        Links.from_settings(load_settings({"data_dir": tmp_path / "file"}))


def test_a_secret_is_stored_on_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is generated once there, too, with mode 0600."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    settings = load_settings({"data_dir": tmp_path})
    follow(
        Links.from_settings(settings).sign(PATH, [], 1_900_000_000, "http://host"), links=Links.from_settings(settings)
    )
    assert (tmp_path / "link-secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"0123456789abcde"])
def test_a_damaged_secret_signs_nothing(tmp_path: Path, content: bytes):
    """With an empty or short secret, anyone could sign links. The error names the file, its size and the remedy."""
    (tmp_path / "link-secret").write_bytes(content)
    with pytest.raises(InvalidSetting, match=rf"link-secret is damaged. .* {len(content)} bytes .* Delete it"):
        Links.from_settings(load_settings({"data_dir": tmp_path}))
