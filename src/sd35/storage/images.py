"""Images' files, and whose they are, kept in step: who owns an image finds its file, and no file is nobody's.

Every file is compared with its checksums when it is read. A damaged one is never handed out, and counts as missing.
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

_LOCKS = 256


class ImageStore:
    """A store of files and the index of their owners. Safe for threads; blocks. Raises StoreUnavailable.

    Within this process, a lock for each image lets one operation at a time change it. The lock does not stop another
    process that shares the store. A change that it makes between two steps of a method here may go unnoticed.
    """

    def __init__(self, files: BlobStore, index: OwnershipIndex) -> None:
        self.files, self.index = files, index
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._on_damage: Callable[[], None] = lambda: None

    def observe(self, on_damage: Callable[[], None]) -> None:
        """Call `on_damage` whenever a damaged file is found, from now on."""
        self._on_damage = on_damage

    def own(self, name: str, digest: str, owner: str, png: bytes, *, was_there: bool = False) -> None:
        """An image is an owner's, and its file is there: also where it `was_there`, and was removed just now.

        The owner comes first: a file that nobody owns would never be removed. Then the checksum, so that no reader
        takes the file for damaged.
        """
        with self._lock(digest):
            self.index.add(digest, owner, len(png), time.time())
            if not (was_there and self.files.size(name) is not None):
                self.index.record(name, checksum_of(png), len(png))
                self._write(name, png)

    def get(self, name: str) -> bytes | None:
        """Read a file; None where there is none. Raises DamagedFile, after logging and counting it."""
        content = self.files.get(name)
        if content is None:
            return None
        checksums = self.index.checksums(name)
        try:
            check_file(name, content, checksums)
        except DamagedFile as error:
            self._on_damage()
            structlog.get_logger().error("a stored image is damaged", file=name, reason=str(error))
            raise
        if not checksums:  # it was stored before there were any; next time, they tell
            with suppress(StoreUnavailable):
                self.index.record(name, checksum_of(content), len(content))
        return content

    def read(self, digest: str) -> bytes | None:
        """An image's file; None where there is none, or it is damaged."""
        try:
            return next((png for name in names_of(digest) if (png := self.get(name)) is not None), None)
        except DamagedFile:
            return None

    def sign(self, digest: str, expires_s: float) -> str | None:
        """The address at which the store itself gives the file for so long; None where it cannot, or has none.

        What is behind the address is not read here. None also where its size is not one that was recorded: then `read`
        tells whether it is damaged.
        """
        for name in names_of(digest):
            size_bytes = self.files.size(name)
            if size_bytes is not None:
                is_known = size_bytes in self.index.checksums(name).values()
                return self.files.sign(name, expires_s) if is_known else None
        return None

    def disown(self, digest: str, owner: str) -> bool:
        """An image is not an owner's any more, and the file goes with the last one; whether it was theirs.

        The file goes first: where that fails, it is still the owner's, who can try again.
        """
        with self._lock(digest):
            owners = self.index.owners(digest)
            if owner not in owners:
                return False
            is_last = owners == {owner}
            taken = self._take(digest) if is_last else {}
            is_nobodys = self.index.remove(digest, owner)
            if is_nobodys and not is_last:  # the others have left, elsewhere, meanwhile
                self._remove(digest)
            for name, content in {} if is_nobodys else taken.items():  # another has come, elsewhere, meanwhile
                self.files.put(name, content)
            return True

    def give_up(self, digest: str) -> None:
        """An image is nobody's any more. The file goes first, here too."""
        with self._lock(digest):
            self._remove(digest)
            self.index.forget(digest)

    def _take(self, digest: str) -> dict[str, bytes]:
        """Remove all files of an image; what they were, but for damaged ones."""
        found = {}
        for name in names_of(digest):
            with suppress(DamagedFile):
                if (content := self.get(name)) is not None:
                    found[name] = content
        self._remove(digest)
        return found

    def _write(self, name: str, png: bytes) -> None:
        """Write a file, unless a good one is there.

        A damaged one is replaced, never removed first: another process may have put a good one there meanwhile.
        """
        if self.files.put(name, png):
            return
        there = self.files.get(name)
        if there is not None:
            try:
                check_file(name, there, self.index.checksums(name))
            except DamagedFile as error:
                structlog.get_logger().warning("a damaged image is replaced", file=name, reason=str(error))
            else:
                return
        self.files.replace(name, png)

    def _remove(self, digest: str) -> None:
        for name in names_of(digest):
            self.files.delete(name)

    def _lock(self, digest: str) -> threading.Lock:
        return self._locks[int(digest[:4], 16) % _LOCKS]
