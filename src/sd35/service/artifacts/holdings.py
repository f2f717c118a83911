"""Pictures' files, and whose they are, kept in step: who owns a picture finds its file, and no file is nobody's."""

import threading
import time

from sd35.service.artifacts.contract import ArtifactStore
from sd35.service.artifacts.index import PictureIndex
from sd35.service.artifacts.names import names_of

_LOCKS = 256


class Holdings:
    """A store of files and the index of their owners. Safe for threads; blocks. Raises StoreUnavailable.

    In this process, one thing at a time happens to a picture. Of another process that shares the store, at most what
    happens between two of these lines is not seen.
    """

    def __init__(self, files: ArtifactStore, index: PictureIndex) -> None:
        self.files, self.index = files, index
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def own(self, name: str, digest: str, owner: str, png: bytes, *, was_there: bool = False) -> None:
        """A picture is an owner's, and its file is there: also where it `was_there`, and was removed just now.

        The owner comes first: a file that nobody owns would never be removed.
        """
        with self._lock(digest):
            self.index.add(digest, owner, len(png), time.time())
            if not (was_there and self.files.has(name)):
                self.files.put(name, png)

    def read(self, digest: str) -> bytes | None:
        """A picture's file; None where there is none."""
        return next((png for name in names_of(digest) if (png := self.files.get(name)) is not None), None)

    def sign(self, digest: str, expires_s: float) -> str | None:
        """The address at which the store itself gives the file for so long; None where it cannot, or has none."""
        name = next((name for name in names_of(digest) if self.files.has(name)), None)
        return name and self.files.sign(name, expires_s)

    def disown(self, digest: str, owner: str) -> bool:
        """A picture is not an owner's any more, and the file goes with the last one; whether it was theirs.

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
        """A picture is nobody's any more. The file goes first, here too."""
        with self._lock(digest):
            self._remove(digest)
            self.index.forget(digest)

    def _take(self, digest: str) -> dict[str, bytes]:
        """Remove all files of a picture; what they were."""
        found = {name: self.files.get(name) for name in names_of(digest)}
        self._remove(digest)
        return {name: content for name, content in found.items() if content is not None}

    def _remove(self, digest: str) -> None:
        for name in names_of(digest):
            self.files.delete(name)

    def _lock(self, digest: str) -> threading.Lock:
        return self._locks[int(digest[:4], 16) % _LOCKS]
