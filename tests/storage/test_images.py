"""ImageStore keeps files and owners consistent, even if owners are added and removed at the same time."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from sd35.errors import StoreUnavailable
from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.images import ImageStore
from sd35.storage.memory.ownership import MemoryOwnershipIndex
from tests.support.fake_backend import WAIT_S

DIGEST = "ab" * 32
NAME, PNG = f"{DIGEST}.png", b"an image"


@pytest.fixture
def images() -> ImageStore:
    """A store with one image, owned by "me"."""
    images = ImageStore(MemoryBlobStore(), MemoryOwnershipIndex())
    images.add(NAME, DIGEST, "me", PNG)
    return images


def during(monkeypatch: pytest.MonkeyPatch, part: Any, method: str, act: Callable[[], Any]) -> None:
    """Call `act` just before the next call of a method."""
    original = getattr(part, method)

    def once(*arguments: Any) -> Any:
        monkeypatch.setattr(part, method, original)
        act()
        return original(*arguments)

    monkeypatch.setattr(part, method, once)


def test_a_file_is_deleted_with_its_last_owner(images: ImageStore):
    """Removing someone who is not an owner does nothing."""
    images.add(NAME, DIGEST, "you", PNG)
    assert not images.remove(DIGEST, "another")
    assert images.remove(DIGEST, "me")
    assert not images.remove(DIGEST, "me")
    assert images.read(DIGEST) == PNG
    assert images.remove(DIGEST, "you")
    assert images.read(DIGEST) is None


@pytest.mark.parametrize("owner", ["me", "you"])
@pytest.mark.parametrize(("part", "method"), [("blobs", "get"), ("blobs", "delete"), ("ownership", "remove")])
def test_an_owner_added_while_the_last_one_is_removed_has_the_file(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch, part: str, method: str, owner: str
):
    """The owner is added before or after the removal, never in between."""
    adding = threading.Thread(target=images.add, args=(NAME, DIGEST, owner, PNG))
    during(monkeypatch, getattr(images, part), method, adding.start)
    assert images.remove(DIGEST, "me")
    adding.join(WAIT_S)
    assert images.ownership.owners(DIGEST) == {owner}
    assert images.read(DIGEST) == PNG


@pytest.mark.parametrize(("part", "method"), [("blobs", "get"), ("blobs", "delete"), ("ownership", "remove")])
def test_an_owner_added_by_another_process_meanwhile_has_the_file(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch, part: str, method: str
):
    """Locks do not reach other processes. When the new owner is noticed, the file is restored."""
    elsewhere = ImageStore(images.blobs, images.ownership)
    during(monkeypatch, getattr(images, part), method, lambda: elsewhere.add(NAME, DIGEST, "you", PNG))
    assert images.remove(DIGEST, "me")
    assert images.ownership.owners(DIGEST) == {"you"}
    assert images.read(DIGEST) == PNG


def test_two_owners_removed_at_once_leave_no_file(images: ImageStore, monkeypatch: pytest.MonkeyPatch):
    """Each removal sees the other owner when it begins."""
    images.add(NAME, DIGEST, "you", PNG)
    elsewhere = ImageStore(images.blobs, images.ownership)
    during(monkeypatch, images.ownership, "remove", lambda: elsewhere.remove(DIGEST, "you"))
    assert images.remove(DIGEST, "me")
    assert images.read(DIGEST) is None


def test_a_removal_that_fails_can_be_repeated(images: ImageStore, monkeypatch: pytest.MonkeyPatch):
    """The owner keeps the image until its file is deleted. Otherwise, the prompt in it would never be deleted."""

    def unavailable(_: str) -> None:
        raise StoreUnavailable("unreachable")

    with monkeypatch.context() as broken:
        broken.setattr(images.blobs, "delete", unavailable)
        with pytest.raises(StoreUnavailable):
            images.remove(DIGEST, "me")
    assert images.ownership.owners(DIGEST) == {"me"}
    assert images.remove(DIGEST, "me")
    assert images.read(DIGEST) is None
