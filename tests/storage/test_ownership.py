"""OwnershipIndex: one contract for all stores."""

from functools import partial

import pytest

from sd35.storage.database import Database
from sd35.storage.names import name_of
from sd35.storage.ownership import OwnershipIndex
from tests.support.job_specs import at_once

DIGEST = "ab" * 32
NAME, BLURRED = name_of(DIGEST), name_of(DIGEST, is_blurred=True)


@pytest.fixture
def index(stores: Database) -> OwnershipIndex:
    """The ownership index of each kind of database."""
    return stores.ownership


def test_an_image_belongs_to_those_who_requested_it(index: OwnershipIndex):
    for owner in ("me", "you", "me", ""):
        index.add("cat", owner, 10, 1.0)
    index.add("dog", "you", 10, 1.0)
    assert index.owners("cat") == {"", "me", "you"}
    assert index.owners("dog") == {"you"}
    assert index.owners("rat") == set()


def test_removing_the_last_owner_removes_the_image(index: OwnershipIndex):
    """`remove` returns whether no owner is left."""
    for owner in ("me", "you"):
        index.add("cat", owner, 10, 1.0)
    assert not index.remove("cat", "me")
    assert not index.remove("cat", "me")
    assert index.remove("cat", "you")
    assert index.remove("cat", "you")


def test_of_simultaneous_removals_at_least_one_is_the_last(index: OwnershipIndex):
    """Otherwise, the file would never be deleted."""
    owners = [f"owner {number}" for number in range(8)]
    for owner in owners:
        index.add("cat", owner, 10, 1.0)
    assert any(at_once([partial(index.remove, "cat", owner) for owner in owners]))


def test_old_images_expire(index: OwnershipIndex):
    """The oldest come first. A new request by any owner makes an image new again."""
    for number, digest in enumerate(["first", "second", "third", "fourth"]):
        index.add(digest, "me", 10, float(number))
    index.add("first", "you", 10, 9.0)
    assert index.expired(3.0, None, 9) == ["second", "third"]
    assert index.expired(3.0, None, 1) == ["second"]
    assert index.expired(None, None, 9) == []
    index.delete("second")
    assert index.expired(3.0, None, 9) == ["third"]


def test_images_dated_in_a_span_are_redated(index: OwnershipIndex):
    """The span includes both bounds. Without an upper bound, it has no end."""
    for created_s in (1.0, 2.0, 3.0, 9e9):
        index.add(f"of {created_s:g}", "me", 10, created_s)
    index.redate(2.0, 3.0, 50.0)
    assert index.expired(50.0, None, 9) == ["of 1"]
    index.redate(60.0, None, 55.0)
    assert index.expired(55.0, None, 9) == ["of 1", "of 2", "of 3"]
    assert "of 9e+09" in index.expired(56.0, None, 9)


def test_the_oldest_images_beyond_the_size_limit_expire(index: OwnershipIndex):
    """An image with several owners counts once."""
    for number, size_bytes in enumerate([5, 40, 30, 20]):
        index.add(str(number), "me", size_bytes, float(number))
        index.add(str(number), "you", size_bytes, float(number))
    assert index.expired(None, 95, 9) == []
    assert index.expired(None, 94, 9) == ["0"]
    assert index.expired(None, 50, 9) == ["0", "1"]
    assert index.expired(3.0, 50, 9) == ["0", "1", "2"]
    assert index.expired(None, 0, 9) == ["0", "1", "2", "3"]


def test_checksums_are_recorded_for_each_file(index: OwnershipIndex):
    """A file may have several. The blurred file has its own."""
    index.add(DIGEST, "me", 10, 1.0)
    for checksum, size_bytes in (("1" * 64, 10), ("2" * 64, 11), ("1" * 64, 10)):
        index.add_checksum(NAME, checksum, size_bytes)
    index.add_checksum(BLURRED, "3" * 64, 12)
    assert index.checksums(NAME) == {"1" * 64: 10, "2" * 64: 11}
    assert index.checksums(BLURRED) == {"3" * 64: 12}
    assert index.checksums(name_of("cd" * 32)) == {}


@pytest.mark.parametrize("end", ["remove", "forget"])
def test_checksums_are_deleted_with_the_last_owner(index: OwnershipIndex, end: str):
    """For an image without owners, none is recorded."""
    for owner in ("me", "you"):
        index.add(DIGEST, owner, 10, 1.0)
    for name in (NAME, BLURRED):
        index.add_checksum(name, "1" * 64, 10)
    index.remove(DIGEST, "me")
    assert index.checksums(NAME)
    if end == "remove":
        index.remove(DIGEST, "you")
    else:
        index.delete(DIGEST)
    assert (index.checksums(NAME), index.checksums(BLURRED)) == ({}, {})
    index.add_checksum(NAME, "1" * 64, 10)
    assert index.checksums(NAME) == {}


def test_digests_come_page_by_page(index: OwnershipIndex):
    """Each digest comes once, in ascending order, however many owners its image has."""
    digests = [f"{number:02x}" * 32 for number in range(5)]
    for digest in reversed(digests):
        for owner in ("me", "you"):
            index.add(digest, owner, 1, 0.0)
    assert index.digests("", 3) == digests[:3]
    assert index.digests(digests[2], 3) == digests[3:]
    assert index.digests(digests[-1], 3) == []
