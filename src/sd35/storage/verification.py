"""Verification of all stored images. It only reads, and changes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sd35.errors import StoreUnavailable
from sd35.storage.images import ImageStore
from sd35.storage.integrity import DamagedFile, check_file
from sd35.storage.names import digest_of, names_of
from sd35.storage.ownership import OwnershipIndex

_PAGE = 10_000
_MAX_CONSECUTIVE_ERRORS = 3  # at this number, the store is assumed to be unavailable, rather than the files damaged


@dataclass(frozen=True)
class Damage:
    """A damaged file, and the reason."""

    file: str
    reason: str


@dataclass
class VerificationReport:
    """Result of a verification.

    Attributes:
        files: Number of files in the store.
        without_checksum: Number of files without a recorded checksum. Their PNG CRCs were checked instead.
        without_owner: Number of files without an owner. The service neither serves nor deletes these.
        damaged: Files that differ from the files that were written.
        missing: Digests of images that have an owner but no file.
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


def verify_images(images: ImageStore) -> VerificationReport:
    """Compare every file with its checksums, and the index with the files. Raises StoreUnavailable.

    A running service may write and delete images meanwhile, so images that seem missing are looked up again at the end.
    """
    blobs, index = images.blobs, images.ownership
    report, found = VerificationReport(), set()
    owned = set(_owned_digests(index))
    errors = 0
    for name in blobs.names():
        try:
            exists = _check(images, name, report)
            errors = 0
        except StoreUnavailable as error:
            errors += 1
            if errors == _MAX_CONSECUTIVE_ERRORS:
                raise
            report.damaged.append(Damage(name, f"it cannot be read: {error}"))
            exists = True
        if exists:
            report.files += 1
            found.add(digest_of(name))
            report.without_owner += digest_of(name) not in owned and not index.owners(digest_of(name))
    report.missing = [digest for digest in sorted(owned - found) if _is_missing(images, digest)]
    return report


def _check(images: ImageStore, name: str, report: VerificationReport) -> bool:
    """Check a file and add the result to the report. Returns False if the file was deleted meanwhile."""
    content = images.blobs.get(name)
    if content is None:
        return False
    checksums = images.ownership.checksums(name)
    report.without_checksum += not checksums
    try:
        check_file(name, content, checksums)
    except DamagedFile as error:
        report.damaged.append(Damage(name, str(error)))
    return True


def _is_missing(images: ImageStore, digest: str) -> bool:
    return all(images.blobs.size(name) is None for name in names_of(digest)) and bool(images.ownership.owners(digest))


def _owned_digests(index: OwnershipIndex) -> Iterator[str]:
    after = ""
    while page := index.digests(after, _PAGE):
        yield from page
        after = page[-1]
