"""Verify all stored images: their files, checksums and owners. Nothing is changed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sd35.errors import StoreUnavailable
from sd35.storage.images import ImageStore
from sd35.storage.integrity import DamagedFile, check_file
from sd35.storage.names import digest_of, names_of
from sd35.storage.ownership import OwnershipIndex

_PAGE = 10_000  # digests per query
_MAX_CONSECUTIVE_ERRORS = 3  # after this many unreadable files in a row, the store itself has failed


@dataclass(frozen=True)
class Damage:
    """A damaged file: its name, and what is wrong with it."""

    file: str
    reason: str


@dataclass
class VerificationReport:
    """Result of a verification.

    Attributes:
        files: Number of files in the store.
        without_checksum: Number of files without a recorded checksum. Their PNG chunks were checked instead.
        without_owner: Number of files without an owner. The service neither serves nor deletes these.
        damaged: Files that cannot be read, or that differ from what was written.
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
    """Compare every file with its checksums, and find files without owners and owned images without files.

    A running service may write and delete images meanwhile, so images that seem missing are looked up again at the end.
    A file that cannot be read counts as damaged. After three of these in a row, or if the index does not answer, raises
    StoreUnavailable.
    """
    blobs, index = images.blobs, images.ownership
    report = VerificationReport()
    owned_digests, file_digests = set(_owned_digests(index)), set()
    errors = 0
    for name in blobs.names():
        try:
            exists = _check_and_report(images, name, report)
            errors = 0
        except StoreUnavailable as error:
            errors += 1
            if errors == _MAX_CONSECUTIVE_ERRORS:
                raise
            report.damaged.append(Damage(name, str(error)))
            exists = True
        if exists:
            digest = digest_of(name)
            report.files += 1
            file_digests.add(digest)
            if digest not in owned_digests and not index.owners(digest):  # it had none before, and has none now
                report.without_owner += 1
    report.missing = [digest for digest in sorted(owned_digests - file_digests) if _is_missing(images, digest)]
    return report


def _check_and_report(images: ImageStore, name: str, report: VerificationReport) -> bool:
    """Check a file and add the result to the report. Returns False if the file was deleted meanwhile."""
    content = images.blobs.get(name)
    if content is None:
        return False
    checksums = images.ownership.checksums(name)
    if not checksums:
        report.without_checksum += 1
    try:
        check_file(name, content, checksums)
    except DamagedFile as error:
        report.damaged.append(Damage(name, str(error)))
    return True


def _is_missing(images: ImageStore, digest: str) -> bool:
    """Return whether an image has an owner but no file now."""
    has_file = any(images.blobs.size(name) is not None for name in names_of(digest))
    return not has_file and bool(images.ownership.owners(digest))


def _owned_digests(index: OwnershipIndex) -> Iterator[str]:
    """Yield the digests of all images with an owner, in ascending order."""
    after = ""
    while page := index.digests(after, _PAGE):
        yield from page
        after = page[-1]
