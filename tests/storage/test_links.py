"""Signed links: what is signed, for how long, and with which secret."""

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
    """Check a link as a server does that gets it."""
    parts = urlsplit(link)
    links.check(parts.path, parse_qsl(parts.query, keep_blank_values=True), now_s)


def test_a_link_is_good_until_it_expires():
    """To the second, and then it says so."""
    link = LINKS.sign(PATH, [("format", "webp")], expiry(NOW_S, 60), "http://127.0.0.1:8000/")
    assert link.startswith(f"http://127.0.0.1:8000{PATH}?format=webp&expires=1800000060&signature=")
    follow(link)
    follow(link, NOW_S + 59)
    with pytest.raises(LinkRefused, match="expires: this link has expired"):
        follow(link, NOW_S + 60)


def test_the_signature_is_what_others_can_compute():
    """HMAC-SHA256, by the standard library, over what the documentation says."""
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
def test_any_other_address_has_another_signature(before: str, after: str):
    """Path, parameters, their order and number, and the time: whatever is changed breaks the link."""
    link = LINKS.sign(PATH, [("format", "webp")], 1_800_000_060, "http://host")
    assert before in link
    with pytest.raises(LinkRefused, match="signature: it is not this service's"):
        follow(link.replace(before, after, 1))


@given(st.text(), st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_what_was_not_signed_is_refused(path: str, parameters: list[tuple[str, str]]):
    """Whatever comes, it is refused, and nothing breaks."""
    with pytest.raises(LinkRefused):
        LINKS.check(path, parameters, NOW_S)


@given(
    st.text(st.characters(codec="utf-8"), max_size=9),
    st.lists(
        st.tuples(st.sampled_from(["format", "a b&"]), st.text(st.characters(codec="utf-8"), max_size=9)), max_size=3
    ),
)
def test_whatever_was_signed_is_followed(path: str, parameters: list[tuple[str, str]]):
    """Any path and parameters survive the way through an address, and another service's secret does not sign them."""
    link = LINKS.sign(f"/{path}", parameters, 1_900_000_000, "https://host/behind/")
    query = parse_qsl(urlsplit(link).query, keep_blank_values=True)
    assert link.startswith(f"https://host/behind/{quote(path)}?")
    LINKS.check(f"/{path}", query, NOW_S)
    with pytest.raises(LinkRefused, match="signature"):
        Links(b"another secret").check(f"/{path}", query, NOW_S)


def test_a_link_lasts_an_hour_and_at_most_a_week():
    """Unless it is said how long; what is out of range is named."""
    assert expiry(NOW_S, None) == 1_800_003_600
    assert expiry(NOW_S, MAX_LIFETIME_S) == 1_800_000_000 + 7 * 86_400
    for wrong in (0, -1, MAX_LIFETIME_S + 1):
        with pytest.raises(InvalidRequest, match=f"expires_in_s: got {wrong}; allowed: 1 to 604800"):
            expiry(NOW_S, wrong)


def test_links_begin_with_the_public_address(tmp_path: Path):
    """Where one is set, however the service was reached."""
    settings = load_settings({"data_dir": tmp_path, "public_url": "https://example.com/sd35/"})
    assert (
        Links.from_settings(settings)
        .sign("/a", [], 1, "http://10.0.0.1:8000")
        .startswith("https://example.com/sd35/a?expires=1&")
    )


def test_links_survive_a_restart_and_only_its_user_reads_the_secret(tmp_path: Path):
    """The secret is drawn once, kept in the data directory with mode 0600, and is another one elsewhere."""
    settings = load_settings({"data_dir": tmp_path / "here"})
    link = Links.from_settings(settings).sign(PATH, [], 1_900_000_000, "http://host")
    follow(link, links=Links.from_settings(settings))
    kept = tmp_path / "here" / "link-secret"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert len(kept.read_bytes()) == 64
    with pytest.raises(LinkRefused):
        follow(link, links=Links.from_settings(load_settings({"data_dir": tmp_path / "elsewhere"})))


def test_a_secret_that_is_set_is_used_and_none_kept(tmp_path: Path):
    """So that several processes follow each other's links."""
    one, other = (
        Links.from_settings(load_settings({"data_dir": tmp_path / name, "link_secret": "of sixteen chars"}))
        for name in ("1", "2")
    )
    follow(one.sign(PATH, [], 1_900_000_000, "http://host"), links=other)
    assert list(tmp_path.iterdir()) == []


def test_a_secret_that_cannot_be_kept_is_told(tmp_path: Path):
    """With the setting, the file and the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSetting, match=r"link_secret: .* data_dir: (Not a directory|File exists): .*link-secret"):
        Links.from_settings(load_settings({"data_dir": tmp_path / "file"}))


def test_a_secret_is_kept_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Drawn once there too, and read by its user alone."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    settings = load_settings({"data_dir": tmp_path})
    follow(
        Links.from_settings(settings).sign(PATH, [], 1_900_000_000, "http://host"), links=Links.from_settings(settings)
    )
    assert (tmp_path / "link-secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("left", [b"", b"0123456789abcde"])
def test_a_damaged_secret_signs_nothing(tmp_path: Path, left: bytes):
    """With an empty or short one, anybody could sign links: the file, its size and the remedy are named."""
    (tmp_path / "link-secret").write_bytes(left)
    with pytest.raises(InvalidSetting, match=rf"link-secret is damaged: it has {len(left)} bytes; .* Delete it"):
        Links.from_settings(load_settings({"data_dir": tmp_path}))
