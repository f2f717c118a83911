"""Retention: images that are deleted by age or by size."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd35.errors import StoreUnavailable
from sd35.settings import load_settings
from sd35.storage.blobs.memory import MemoryBlobStore
from sd35.storage.images import ImageStore
from sd35.storage.integrity import checksum_of
from sd35.storage.memory.ownership import MemoryOwnershipIndex
from sd35.storage.names import name_of
from sd35.storage.retention import Retention

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0


class StoredImages:
    """Images of one owner, in a store and its index."""

    def __init__(self) -> None:
        self.store, self.index = MemoryBlobStore(), MemoryOwnershipIndex()
        self.images = ImageStore(self.store, self.index)
        self.digests: set[str] = set()

    def add(self, age_s: float, size_bytes: int, *, is_blurred: bool = False) -> str:
        """Add an image and return its digest."""
        digest = f"{len(self.digests):064x}"
        name, content = name_of(digest, is_blurred=is_blurred), bytes(size_bytes)
        self.store.put(name, content)
        self.index.add(digest, "me", size_bytes, NOW_S - age_s)
        self.index.add_checksum(name, checksum_of(content), size_bytes)
        self.digests.add(digest)
        return digest

    def remaining(self) -> set[str]:
        """Return the digests of the images that have a file. The index must have the same."""
        found = {digest for digest in self.digests if self.images.read(digest) is not None}
        assert found == {digest for digest in self.digests if self.index.owners(digest)}
        return found


def test_old_images_are_deleted_with_all_their_files():
    """Blurred images, too. Younger images stay, however large."""
    stored = StoredImages()
    old = {stored.add(3 * DAY_S, 10), stored.add(2.1 * DAY_S, 10, is_blurred=True)}
    young = {stored.add(1.9 * DAY_S, 10_000), stored.add(0, 10)}
    assert Retention(stored.images, 2 * DAY_S, None).sweep(NOW_S) == 2
    assert stored.remaining() == young
    assert not set(stored.store.names()) & {f"{digest}{suffix}.png" for digest in old for suffix in ("", "-blurred")}


def test_the_oldest_images_beyond_the_size_limit_are_deleted():
    stored = StoredImages()
    images = [stored.add(hours * 3600, 100) for hours in (5, 4, 3, 2)]
    assert Retention(stored.images, None, 250).sweep(NOW_S) == 2
    assert stored.remaining() == set(images[2:])


def test_images_of_the_last_ten_minutes_are_kept():
    """Even beyond the size limit, because a client may wait for them."""
    stored = StoredImages()
    young, old = stored.add(599, 100), stored.add(601, 100)
    assert Retention(stored.images, None, 1).sweep(NOW_S) == 1
    assert (young in stored.remaining(), old in stored.remaining()) == (True, False)


def test_without_bounds_everything_is_kept(tmp_path: Path):
    """0 days and 0 GB are no bounds."""
    stored = StoredImages()
    for hours in (1, 11, 13):
        stored.add(hours * 3600, 600_000)
    for days, gigabytes, removed in (("0", "0", 0), ("0.5", "0", 1), ("0", "0.001", 1)):
        settings = load_settings({"data_dir": tmp_path, "retention_days": days, "retention_gb": gigabytes})
        assert Retention.from_settings(settings, stored.images).sweep(NOW_S) == removed


def test_a_failed_sweep_resumes_next_time(monkeypatch: pytest.MonkeyPatch):
    """The image stays in the index, so that its file is deleted later."""
    stored = StoredImages()
    stored.add(3 * DAY_S, 10)

    def broken(_: str) -> None:
        raise StoreUnavailable("unreachable")

    retention = Retention(stored.images, DAY_S, None)
    with monkeypatch.context() as patched:
        patched.setattr(stored.store, "delete", broken)
        with pytest.raises(StoreUnavailable):
            retention.sweep(NOW_S)
    assert len(stored.remaining()) == 1
    assert retention.sweep(NOW_S) == 1


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50)), max_size=250), st.integers(1, 3000))
def test_the_remaining_images_are_young_and_fit(images: list[tuple[int, int]], max_bytes: int):
    """None is too old, those older than ten minutes fit the limit, and none is deleted needlessly."""
    stored = StoredImages()
    added = {stored.add(minutes * 60, size): (minutes * 60, size) for minutes, size in images}
    Retention(stored.images, 80 * 60, max_bytes).sweep(NOW_S)
    remaining = stored.remaining()
    assert all(added[digest][0] <= 80 * 60 for digest in remaining)
    assert all(digest in remaining for digest, (age_s, _) in added.items() if age_s <= 600)
    assert sum(added[digest][1] for digest in remaining) <= max(
        max_bytes, sum(size for age_s, size in added.values() if age_s <= 600)
    )
    deleted = [age_s for digest, (age_s, _) in added.items() if digest not in remaining and age_s <= 80 * 60]
    assert all(added[digest][0] <= min(deleted) for digest in remaining) if deleted else True
