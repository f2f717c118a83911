"""Checks every stored image. Reads only: nothing is repaired, removed or recorded."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sd35.errors import StoreUnavailable
from sd35.storage.blobs.base import BlobStore
from sd35.storage.integrity import DamagedFile, check_file
from sd35.storage.names import digest_of, names_of
from sd35.storage.ownership import OwnershipIndex

_PAGE = 10_000
_UNREADABLE_IN_A_ROW = 3  # then it is the store that fails, not the file


@dataclass(frozen=True)
class Damage:
    """A file that cannot be used, and why."""

    file: str
    reason: str


@dataclass
class Report:
    """What a check found.

    Attributes:
        files: Number of files in the store.
        without_checksum: How many of them were stored before checksums existed. Each was checked by its own CRCs.
        without_owner: How many of them nobody owns. The service neither serves nor removes these by itself.
        damaged: Files that are not what was written.
        missing: Digests of images that somebody owns and that have no file.
    """

    files: int = 0
    without_checksum: int = 0
    without_owner: int = 0
    damaged: list[Damage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether no image is damaged or missing."""
        return not self.damaged and not self.missing


def verify_images(files: BlobStore, index: OwnershipIndex) -> Report:
    """Compare every file with its checksums, and the index with the files. Raises StoreUnavailable.

    A service may go on writing and removing images meanwhile: what looks missing is looked for again at the end.
    """
    report, found = Report(), set()
    owned = set(_digests(index))
    unreadable = 0
    for name in files.names():
        try:
            is_there = _check(files, index, name, report)
            unreadable = 0
        except StoreUnavailable as error:
            unreadable += 1
            if unreadable == _UNREADABLE_IN_A_ROW:
                raise
            report.damaged.append(Damage(name, f"it cannot be read: {error}"))
            is_there = True
        if is_there:
            report.files += 1
            found.add(digest_of(name))
            report.without_owner += digest_of(name) not in owned and not index.owners(digest_of(name))
    report.missing = [digest for digest in sorted(owned - found) if _is_missing(files, index, digest)]
    return report


def _check(files: BlobStore, index: OwnershipIndex, name: str, report: Report) -> bool:
    """Check a file; False where it was removed meanwhile."""
    content = files.get(name)
    if content is None:
        return False
    checksums = index.checksums(name)
    report.without_checksum += not checksums
    try:
        check_file(name, content, checksums)
    except DamagedFile as error:
        report.damaged.append(Damage(name, str(error)))
    return True


def _is_missing(files: BlobStore, index: OwnershipIndex, digest: str) -> bool:
    return all(files.size(name) is None for name in names_of(digest)) and bool(index.owners(digest))


def _digests(index: OwnershipIndex) -> Iterator[str]:
    after = ""
    while page := index.digests(after, _PAGE):
        yield from page
        after = page[-1]
