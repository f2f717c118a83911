"""Files and owners in step, whoever comes and leaves at the same moment."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from sd35.errors import StoreUnavailable
from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.images import ImageStore
from sd35.storage.ownership import MemoryOwnershipIndex
from tests.support.fake_backend import WAIT_S

DIGEST = "ab" * 32
NAME, PNG = f"{DIGEST}.png", b"an image"


@pytest.fixture
def holdings() -> ImageStore:
    """Of "me", who has one image."""
    holdings = ImageStore(MemoryBlobStore(), MemoryOwnershipIndex())
    holdings.own(NAME, DIGEST, "me", PNG)
    return holdings


def during(monkeypatch: pytest.MonkeyPatch, part: Any, method: str, act: Callable[[], Any]) -> None:
    """Have something else happen just before the next call of a method."""
    plain = getattr(part, method)

    def once(*arguments: Any) -> Any:
        monkeypatch.setattr(part, method, plain)
        act()
        return plain(*arguments)

    monkeypatch.setattr(part, method, once)


def test_a_file_goes_with_its_last_owner(holdings: ImageStore):
    """Not before; and who does not own it removes nothing."""
    holdings.own(NAME, DIGEST, "you", PNG)
    assert not holdings.disown(DIGEST, "another")
    assert holdings.disown(DIGEST, "me")
    assert not holdings.disown(DIGEST, "me")
    assert holdings.read(DIGEST) == PNG
    assert holdings.disown(DIGEST, "you")
    assert holdings.read(DIGEST) is None


@pytest.mark.parametrize("owner", ["me", "you"])
@pytest.mark.parametrize(("part", "method"), [("files", "get"), ("files", "delete"), ("index", "remove")])
def test_a_request_during_the_last_removal_gets_the_file(
    holdings: ImageStore, monkeypatch: pytest.MonkeyPatch, part: str, method: str, owner: str
):
    """At whatever moment: they come before the removal or after it, never in between."""
    coming = threading.Thread(target=holdings.own, args=(NAME, DIGEST, owner, PNG))
    during(monkeypatch, getattr(holdings, part), method, coming.start)
    assert holdings.disown(DIGEST, "me")
    coming.join(WAIT_S)
    assert holdings.index.owners(DIGEST) == {owner}
    assert holdings.read(DIGEST) == PNG


@pytest.mark.parametrize(("part", "method"), [("files", "get"), ("files", "delete"), ("index", "remove")])
def test_a_request_in_another_process_during_the_last_removal_gets_the_file(
    holdings: ImageStore, monkeypatch: pytest.MonkeyPatch, part: str, method: str
):
    """There no lock helps: the owner is seen when the row is removed, and the file is put back."""
    elsewhere = ImageStore(holdings.files, holdings.index)
    during(monkeypatch, getattr(holdings, part), method, lambda: elsewhere.own(NAME, DIGEST, "you", PNG))
    assert holdings.disown(DIGEST, "me")
    assert holdings.index.owners(DIGEST) == {"you"}
    assert holdings.read(DIGEST) == PNG


def test_two_owners_who_leave_at_once_leave_no_file(holdings: ImageStore, monkeypatch: pytest.MonkeyPatch):
    """Each saw the other when it began."""
    holdings.own(NAME, DIGEST, "you", PNG)
    elsewhere = ImageStore(holdings.files, holdings.index)
    during(monkeypatch, holdings.index, "remove", lambda: elsewhere.disown(DIGEST, "you"))
    assert holdings.disown(DIGEST, "me")
    assert holdings.read(DIGEST) is None


def test_a_removal_that_fails_can_be_repeated(holdings: ImageStore, monkeypatch: pytest.MonkeyPatch):
    """The image stays its owner's until the file is gone: else its prompt would lie there for ever."""

    def unavailable(_: str) -> None:
        raise StoreUnavailable("gone")

    with monkeypatch.context() as broken:
        broken.setattr(holdings.files, "delete", unavailable)
        with pytest.raises(StoreUnavailable):
            holdings.disown(DIGEST, "me")
    assert holdings.index.owners(DIGEST) == {"me"}
    assert holdings.disown(DIGEST, "me")
    assert holdings.read(DIGEST) is None
