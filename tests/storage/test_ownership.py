"""What every OwnershipIndex does."""

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
    """An index of each kind."""
    return stores.images


def test_an_image_belongs_to_those_who_requested_it(index: OwnershipIndex):
    """And of nobody else, for a digest can be guessed."""
    for owner in ("me", "you", "me", ""):
        index.add("cat", owner, 10, 1.0)
    index.add("dog", "you", 10, 1.0)
    assert index.owners("cat") == {"", "me", "you"}
    assert (index.owns("cat", "me"), index.owns("dog", "me")) == (True, False)
    assert index.owners("rat") == set()


def test_removing_the_last_owner_reports_that_none_is_left(index: OwnershipIndex):
    """Removing says whether it is nobody's now."""
    for owner in ("me", "you"):
        index.add("cat", owner, 10, 1.0)
    assert not index.remove("cat", "me")
    assert not index.remove("cat", "me")
    assert index.remove("cat", "you")
    assert index.remove("cat", "you")


def test_of_owners_who_leave_at_once_the_last_one_knows(index: OwnershipIndex):
    """The file is never left lying because each took another for the last."""
    owners = [f"owner {number}" for number in range(8)]
    for owner in owners:
        index.add("cat", owner, 10, 1.0)
    assert any(at_once([partial(index.remove, "cat", owner) for owner in owners]))


def test_images_are_listed_by_their_last_request(index: OwnershipIndex):
    """The oldest come first; asked for again, by anyone, an image is new."""
    for number, digest in enumerate(["first", "second", "third", "fourth"]):
        index.add(digest, "me", 10, float(number))
    index.add("first", "you", 10, 9.0)
    assert index.outdated(3.0, None, 9) == ["second", "third"]
    assert index.outdated(3.0, None, 1) == ["second"]
    assert index.outdated(None, None, 9) == []
    index.forget("second")
    assert index.outdated(3.0, None, 9) == ["third"]


def test_images_dated_in_a_span_are_made_new(index: OwnershipIndex):
    """Both ends belong to it; without an end, it reaches into any future."""
    for created_s in (1.0, 2.0, 3.0, 9e9):
        index.add(f"of {created_s:g}", "me", 10, created_s)
    index.redate(2.0, 3.0, 50.0)
    assert index.outdated(50.0, None, 9) == ["of 1"]
    index.redate(60.0, None, 55.0)
    assert index.outdated(55.0, None, 9) == ["of 1", "of 2", "of 3"]
    assert "of 9e+09" in index.outdated(56.0, None, 9)


def test_the_oldest_images_beyond_the_size_limit_are_listed(index: OwnershipIndex):
    """What does not fit beside all newer ones goes, the oldest first; what several own takes its room once."""
    for number, size_bytes in enumerate([5, 40, 30, 20]):
        index.add(str(number), "me", size_bytes, float(number))
        index.add(str(number), "you", size_bytes, float(number))
    assert index.outdated(None, 95, 9) == []
    assert index.outdated(None, 94, 9) == ["0"]
    assert index.outdated(None, 50, 9) == ["0", "1"]
    assert index.outdated(3.0, 50, 9) == ["0", "1", "2"]
    assert index.outdated(None, 0, 9) == ["0", "1", "2", "3"]


def test_checksums_are_recorded_for_each_file(index: OwnershipIndex):
    """Each content that was written under a name, once; the blurred file has its own."""
    index.add(DIGEST, "me", 10, 1.0)
    for checksum, size_bytes in (("1" * 64, 10), ("2" * 64, 11), ("1" * 64, 10)):
        index.record(NAME, checksum, size_bytes)
    index.record(BLURRED, "3" * 64, 12)
    assert index.checksums(NAME) == {"1" * 64: 10, "2" * 64: 11}
    assert index.checksums(BLURRED) == {"3" * 64: 12}
    assert index.checksums(name_of("cd" * 32)) == {}


@pytest.mark.parametrize("end", ["remove", "forget"])
def test_checksums_go_with_the_last_owner(index: OwnershipIndex, end: str):
    """Not before; and for an image that nobody owns, none is recorded."""
    for owner in ("me", "you"):
        index.add(DIGEST, owner, 10, 1.0)
    for name in (NAME, BLURRED):
        index.record(name, "1" * 64, 10)
    index.remove(DIGEST, "me")
    assert index.checksums(NAME)
    if end == "remove":
        index.remove(DIGEST, "you")
    else:
        index.forget(DIGEST)
    assert (index.checksums(NAME), index.checksums(BLURRED)) == ({}, {})
    index.record(NAME, "1" * 64, 10)
    assert index.checksums(NAME) == {}


def test_digests_come_page_by_page(index: OwnershipIndex):
    """Each once, however many own it, in order."""
    digests = [f"{number:02x}" * 32 for number in range(5)]
    for digest in reversed(digests):
        for owner in ("me", "you"):
            index.add(digest, owner, 1, 0.0)
    assert index.digests("", 3) == digests[:3]
    assert index.digests(digests[2], 3) == digests[3:]
    assert index.digests(digests[-1], 3) == []
