"""Which images are given up, and when."""

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


class Shelf:
    """Images of one owner, in a store and its index."""

    def __init__(self) -> None:
        self.store, self.index = MemoryBlobStore(), MemoryOwnershipIndex()
        self.images = ImageStore(self.store, self.index)
        self.digests: set[str] = set()

    def add(self, age_s: float, size_bytes: int, *, is_blurred: bool = False) -> str:
        """Keep an image; its digest."""
        digest = f"{len(self.digests):064x}"
        name, content = name_of(digest, is_blurred=is_blurred), bytes(size_bytes)
        self.store.put(name, content)
        self.index.add(digest, "me", size_bytes, NOW_S - age_s)
        self.index.add_checksum(name, checksum_of(content), size_bytes)
        self.digests.add(digest)
        return digest

    def remaining(self) -> set[str]:
        """The images whose file is there; those of the index are the same."""
        found = {digest for digest in self.digests if self.images.read(digest) is not None}
        assert found == {digest for digest in self.digests if self.index.owners(digest)}
        return found


def test_old_images_go_with_all_their_files():
    """Blurred ones too; those that are younger stay, however large."""
    shelf = Shelf()
    old = {shelf.add(3 * DAY_S, 10), shelf.add(2.1 * DAY_S, 10, is_blurred=True)}
    young = {shelf.add(1.9 * DAY_S, 10_000), shelf.add(0, 10)}
    assert Retention(shelf.images, 2 * DAY_S, None).sweep(NOW_S) == 2
    assert shelf.remaining() == young
    assert not set(shelf.store.names()) & {f"{digest}{suffix}.png" for digest in old for suffix in ("", "-blurred")}


def test_the_oldest_images_beyond_the_size_limit_are_deleted():
    """Until what is left fits."""
    shelf = Shelf()
    images = [shelf.add(hours * 3600, 100) for hours in (5, 4, 3, 2)]
    assert Retention(shelf.images, None, 250).sweep(NOW_S) == 2
    assert shelf.remaining() == set(images[2:])


def test_new_images_are_kept():
    """For ten minutes, whatever room there is: somebody waits for it."""
    shelf = Shelf()
    young, old = shelf.add(599, 100), shelf.add(601, 100)
    assert Retention(shelf.images, None, 1).sweep(NOW_S) == 1
    assert (young in shelf.remaining(), old in shelf.remaining()) == (True, False)


def test_without_bounds_everything_is_kept(tmp_path: Path):
    """0 days and 0 GB are no bounds; half a day and a thousandth of a GB are."""
    shelf = Shelf()
    for hours in (1, 11, 13):
        shelf.add(hours * 3600, 600_000)
    for days, gigabytes, removed in (("0", "0", 0), ("0.5", "0", 1), ("0", "0.001", 1)):
        settings = load_settings({"data_dir": tmp_path, "retention_days": days, "retention_gb": gigabytes})
        assert Retention.from_settings(settings, shelf.images).sweep(NOW_S) == removed


def test_a_failed_sweep_resumes_next_time(monkeypatch: pytest.MonkeyPatch):
    """Where the store does not answer, the image stays known, so that its file is removed later."""
    shelf = Shelf()
    shelf.add(3 * DAY_S, 10)

    def broken(_: str) -> None:
        raise StoreUnavailable("gone")

    retention = Retention(shelf.images, DAY_S, None)
    with monkeypatch.context() as patched:
        patched.setattr(shelf.store, "delete", broken)
        with pytest.raises(StoreUnavailable):
            retention.sweep(NOW_S)
    assert len(shelf.remaining()) == 1
    assert retention.sweep(NOW_S) == 1


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50)), max_size=250), st.integers(1, 3000))
def test_the_remaining_images_are_young_and_fit(images: list[tuple[int, int]], most_bytes: int):
    """Of any images: none is too old, the settled ones fit beside the fresh, and nothing goes that could stay."""
    shelf = Shelf()
    made = {shelf.add(minutes * 60, size): (minutes * 60, size) for minutes, size in images}
    Retention(shelf.images, 80 * 60, most_bytes).sweep(NOW_S)
    remaining = shelf.remaining()
    assert all(made[digest][0] <= 80 * 60 for digest in remaining)
    assert all(digest in remaining for digest, (age_s, _) in made.items() if age_s <= 600)
    assert sum(made[digest][1] for digest in remaining) <= max(
        most_bytes, sum(size for age_s, size in made.values() if age_s <= 600)
    )
    gone = [age_s for digest, (age_s, _) in made.items() if digest not in remaining and age_s <= 80 * 60]
    assert all(made[digest][0] <= min(gone) for digest in remaining) if gone else True
