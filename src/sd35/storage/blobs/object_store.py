"""Images in an object store, through obstore, or in a directory."""

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from sd35.errors import StoreUnavailable
from sd35.storage.names import name_at, place_of
from sd35.storage.whole_files import FileStage, make_private

SCHEMES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}  # and what their environment variables begin with
# A call ends within a minute: what is not answered is not waited for again, what is refused is tried twice more.
_CONNECT_S, _ANSWER_S, _RETRIES, _RETRYING_S = 5, 20, 2, 20
_CAUSE = re.compile(r'\b(?:message|error): "([^"]+)"')  # in obstore's description of an error, the last is the first
_TOLD = re.compile(r"<Message>([^<]+)</Message>")  # in what S3 and Azure answer
_QUERY = re.compile(r"\?\S+")  # of an address: it may hold a signature
_BODY = re.compile(r": *<.*")  # of an answer, whose message is taken out
_FOLDER = re.compile(r"[0-9a-f]{2}")  # see `place_of`
_NO_CREDENTIALS = re.compile(r"169\.254\.\d+\.\d+|metadata\.google\.internal")  # asked where nothing else names any


class ObjectStore:
    """An BlobStore in a bucket of S3, Google Cloud Storage or Azure: `s3://bucket/prefix`, `gs://...`, `az://...`.

    Credentials, region and endpoint come from the environment: `AWS_...`, `GOOGLE_...`, `AZURE_...`.
    """

    def __init__(self, url: str) -> None:
        self.address = url
        prefix = SCHEMES[url.partition("://")[0]]
        endpoints = [value for name, value in os.environ.items() if name.startswith(prefix) and "ENDPOINT" in name]
        client: Any = {
            "allow_http": any(value.startswith("http://") for value in endpoints),  # whoever names one means it
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "timeout": timedelta(seconds=_ANSWER_S),
        }
        retry: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRYING_S)}
        with self._translated("be opened"):
            self._store: Any = from_url(url, client_options=client, retry_config=retry)

    def check(self) -> None:
        """Write a file, twice, read it and remove it. Raises StoreUnavailable."""
        place = f"check-{uuid4().hex}.png"
        for content in (b"first", b"second"):
            self._write(place, content)
        found = self._read(place)
        self._delete(place)
        if found != b"first":
            raise StoreUnavailable(
                f"the image store {self.address} does not keep what was written first: it has to heed If-None-Match"
            )

    def put(self, name: str, content: bytes) -> bool:
        """Write one; False where there was one already."""
        return self._write(place_of(name), content)

    def replace(self, name: str, content: bytes) -> None:
        """Write one in the place of what is there."""
        self._overwrite(place_of(name), content)

    def get(self, name: str) -> bytes | None:
        """Read one; None where there is none."""
        return self._read(place_of(name))

    def size(self, name: str) -> int | None:
        """Return the size of one in bytes; None where there is none."""
        return self._size(place_of(name))

    def names(self) -> Iterator[str]:
        """Yield the name of each file."""
        with self._translated("be listed"):
            yield from filter(None, map(name_at, self._places()))

    def delete(self, name: str) -> None:
        """Remove one; nothing where there is none."""
        self._delete(place_of(name))

    def sign(self, name: str, expires_s: float) -> str | None:
        """An address at which the object store itself gives the file for so long."""
        assert isinstance(self._store, S3Store | GCSStore | AzureStore)
        with self._translated("sign an address"):
            return obstore.sign(self._store, "GET", place_of(name), timedelta(seconds=expires_s))

    def _write(self, place: str, content: bytes) -> bool:
        """Whole, and for good: the object store itself refuses a second writing of a name."""
        with self._translated("be written to"):
            try:
                self._put(place, content, "create")
            except AlreadyExistsError:
                return False
            return True

    def _overwrite(self, place: str, content: bytes) -> None:
        with self._translated("be written to"):
            self._put(place, content, "overwrite")

    def _put(self, place: str, content: bytes, mode: str) -> None:
        attributes = {"Content-Type": f"image/{place.rpartition('.')[2]}"}
        self._store.put(place, content, mode=mode, use_multipart=False, attributes=attributes)

    def _size(self, place: str) -> int | None:
        with self._translated("be read"):
            try:
                return int(self._store.head(place)["size"])
            except FileNotFoundError:
                return None

    def _places(self) -> Iterator[str]:
        for page in self._store.list(chunk_size=1000):
            yield from (each["path"] for each in page)

    def _read(self, place: str) -> bytes | None:
        with self._translated("be read"):
            try:
                return bytes(self._store.get(place).bytes())
            except FileNotFoundError:
                return None

    def _delete(self, place: str) -> None:
        with self._translated("remove an image"), contextlib.suppress(FileNotFoundError):
            self._store.delete(place)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the image store {self.address} cannot {what}: {_reason(error)}") from error


class DirectoryStore(ObjectStore):
    """An BlobStore in a directory, without obstore: its local store does not wait for the disk.

    `check` makes the directory, and lets nobody but this process's user into the folders of images. A directory that is
    there already keeps its mode, for it may hold other things.
    """

    def __init__(self, directory: Path) -> None:
        self.address = str(directory)
        self._directory, self._stage = directory, FileStage(directory)

    def check(self) -> None:
        """Make the directory; write a file, twice, read it and remove it. Raises StoreUnavailable."""
        with self._translated("be opened"):
            self._stage.prepare()
            for folder in self._folders():
                make_private(folder)
        super().check()

    def sign(self, name: str, expires_s: float) -> None:  # noqa: ARG002
        """None: a directory has no address."""
        place_of(name)

    def _write(self, place: str, content: bytes) -> bool:
        with self._translated("be written to"):
            return self._stage.write_once(place, content)

    def _overwrite(self, place: str, content: bytes) -> None:
        with self._translated("be written to"):
            self._stage.replace(place, content)

    def _read(self, place: str) -> bytes | None:
        with self._translated("be read"):
            try:
                return (self._directory / place).read_bytes()
            except FileNotFoundError:
                return None

    def _size(self, place: str) -> int | None:
        with self._translated("be read"):
            try:
                return (self._directory / place).stat().st_size
            except FileNotFoundError:
                return None

    def _delete(self, place: str) -> None:
        with self._translated("remove an image"):
            (self._directory / place).unlink(missing_ok=True)

    def _places(self) -> Iterator[str]:
        for folder in self._folders():
            yield from (f"{folder.name}/{path.name}" for path in folder.iterdir())

    def _folders(self) -> list[Path]:
        """The folders in which images lie."""
        return [path for path in self._directory.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]


def _reason(error: BaseError | OSError) -> str:
    """What went wrong, in a line: obstore tells it in many."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first, _, details = str(error).partition("\n")
    if _NO_CREDENTIALS.search(first):
        return "no credentials are set in the environment, and this machine has none of its own"
    causes = _TOLD.findall(str(error)) or _CAUSE.findall(details) or ["timed out"] * ("TimedOut" in details)
    words = _QUERY.sub("", _BODY.sub("", first))
    return f"{words} ({causes[-1]})" if causes and causes[-1] not in words else words
