"""Store of images: files in a blob store, and the owners of the images in an index.

The order of the writes ensures that every file has an owner. After a crash, an owned image may have no file. It then
counts as missing. Each file is compared with its recorded checksums when it is read. A damaged file is never returned.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from sd35.errors import StoreUnavailable
from sd35.storage.blobs.base import BlobStore
from sd35.storage.integrity import DamagedFile, check_file, checksum_of
from sd35.storage.names import names_of
from sd35.storage.ownership import OwnershipIndex

_LOCKS = 256  # enough that two images rarely share a lock


class ImageStore:
    """A blob store and the index of image owners. Thread-safe.

    Methods block. They raise StoreUnavailable if the blob store or the index does not answer.

    Within this process, a lock lets one operation at a time change an image. The lock does not exclude other processes
    that share the store, so a method may miss a change that another process makes between two of its steps.
    """

    def __init__(self, blobs: BlobStore, ownership: OwnershipIndex) -> None:
        self.blobs, self.ownership = blobs, ownership
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._on_damage: Callable[[], None] = lambda: None

    def observe(self, on_damage: Callable[[], None]) -> None:
        """Call `on_damage` for each damaged file from now on."""
        self._on_damage = on_damage

    def add(self, name: str, digest: str, owner: str, png: bytes, *, was_stored: bool = False) -> None:
        """Add an owner to an image, and write the file of the image.

        The owner is added first, because a file without an owner would never be removed. Then the checksum is added,
        because a reader would otherwise treat the new file as damaged.

        Args:
            name: Name of the file.
            digest: Digest of the request that generated the image.
            owner: The new owner.
            png: Content of the file.
            was_stored: Whether the caller has just found the file in the store. If true, the file is only written if
                it was removed meanwhile.
        """
        with self._lock(digest):
            self.ownership.add(digest, owner, len(png), time.time())
            if not (was_stored and self.blobs.size(name) is not None):
                self.ownership.add_checksum(name, checksum_of(png), len(png))
                self._write(name, png)

    def get(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it is missing.

        Raises DamagedFile if the file is damaged, after logging that and calling the observer.
        """
        content = self.blobs.get(name)
        if content is None:
            return None
        checksums = self.ownership.checksums(name)
        try:
            check_file(name, content, checksums)
        except DamagedFile as error:
            self._on_damage()
            remedy = "check the disk, and run `sd35 storage verify`"
            structlog.get_logger().error("a stored image is damaged", file=name, reason=str(error), remedy=remedy)
            raise
        if not checksums:  # an older version stored the file; record a checksum for the next read
            with suppress(StoreUnavailable):
                self.ownership.add_checksum(name, checksum_of(content), len(content))
        return content

    def read(self, digest: str) -> bytes | None:
        """Return the content of an image's PNG file: the original if it is stored, otherwise the blurred one.

        Returns None if the file is missing or damaged.
        """
        with suppress(DamagedFile):
            for name in names_of(digest):
                png = self.get(name)
                if png is not None:
                    return png
        return None

    def sign(self, digest: str, expires_s: float) -> str | None:
        """Return a URL at which the blob store itself serves the image for `expires_s` seconds.

        Returns None if the image is missing, or if the store has no such URLs. Also returns None if the file has a size
        that was never recorded. It may then be damaged, so the caller should use `read`, which checks it.
        """
        for name in names_of(digest):
            size_bytes = self.blobs.size(name)
            if size_bytes is not None:
                is_known = size_bytes in self.ownership.checksums(name).values()
                return self.blobs.sign(name, expires_s) if is_known else None
        return None

    def remove(self, digest: str, owner: str) -> bool:
        """Remove an owner from an image, and delete the files of the image if nobody else owns it.

        The files are deleted before the owner is removed. If deleting fails, the owner can try again.

        Returns:
            Whether `owner` owned the image.
        """
        with self._lock(digest):
            owners = self.ownership.owners(digest)
            if owner not in owners:
                return False
            is_last = owners == {owner}
            removed = self._take_files(digest) if is_last else {}
            is_unowned = self.ownership.remove(digest, owner)
            if is_unowned and not is_last:  # another process removed the other owners meanwhile
                self._delete_files(digest)
            if is_last and not is_unowned:  # another process added an owner after the files were deleted
                for name, content in removed.items():
                    self.blobs.put(name, content)
            return True

    def delete(self, digest: str) -> None:
        """Delete an image with all its owners. The files are deleted before the owners, as in `remove`."""
        with self._lock(digest):
            self._delete_files(digest)
            self.ownership.delete(digest)

    def _take_files(self, digest: str) -> dict[str, bytes]:
        """Delete all files of an image. Returns the contents of the undamaged files by name, to write them back."""
        contents = {}
        for name in names_of(digest):
            with suppress(DamagedFile):
                content = self.get(name)
                if content is not None:
                    contents[name] = content
        self._delete_files(digest)
        return contents

    def _write(self, name: str, png: bytes) -> None:
        """Write a file, unless an undamaged file of this name exists. Replaces a damaged file.

        A damaged file is not deleted first, because another process may have replaced it with a good file meanwhile.
        """
        if self.blobs.put(name, png):
            return
        stored = self.blobs.get(name)
        if stored is not None:
            try:
                check_file(name, stored, self.ownership.checksums(name))
            except DamagedFile as error:
                structlog.get_logger().warning("replacing a damaged image", file=name, reason=str(error))
            else:
                return  # the existing file is good
        self.blobs.replace(name, png)

    def _delete_files(self, digest: str) -> None:
        for name in names_of(digest):
            self.blobs.delete(name)

    def _lock(self, digest: str) -> threading.Lock:
        return self._locks[int(digest[:4], 16) % _LOCKS]
