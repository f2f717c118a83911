"""Pictures in an object store, or in a directory, through obstore."""

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
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

from sd35.errors import StoreUnavailable
from sd35.service.artifacts.files import FileStage
from sd35.service.artifacts.names import place_of

SCHEMES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}  # and what their environment variables begin with
# A call ends within a minute: what is not answered is not waited for again, what is refused is tried twice more.
_CONNECT_S, _ANSWER_S, _RETRIES, _RETRYING_S = 5, 20, 2, 20
_CAUSE = re.compile(r'\b(?:message|error): "([^"]+)"')  # in obstore's description of an error, the last is the first
_TOLD = re.compile(r"<Message>([^<]+)</Message>")  # in what S3 and Azure answer
_QUERY = re.compile(r"\?\S+")  # of an address: it may hold a signature
_BODY = re.compile(r": *<.*")  # of an answer, whose message is taken out
_NO_CREDENTIALS = re.compile(r"169\.254\.\d+\.\d+|metadata\.google\.internal")  # asked where nothing else names any


class ObjectStore:
    """An ArtifactStore in a bucket of S3, Google Cloud Storage or Azure: `s3://bucket/prefix`, `gs://...`, `az://...`.

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
                f"the picture store {self.address} does not keep what was written first: it has to heed If-None-Match"
            )

    def put(self, name: str, content: bytes) -> None:
        """Write one."""
        self._write(place_of(name), content)

    def get(self, name: str) -> bytes | None:
        """Read one; None where there is none."""
        return self._read(place_of(name))

    def has(self, name: str) -> bool:
        """Whether there is one."""
        with self._translated("be read"):
            try:
                self._store.head(place_of(name))
            except FileNotFoundError:
                return False
            return True

    def delete(self, name: str) -> None:
        """Remove one; nothing where there is none."""
        self._delete(place_of(name))

    def sign(self, name: str, expires_s: float) -> str | None:
        """An address at which the object store itself gives the file for so long."""
        assert isinstance(self._store, S3Store | GCSStore | AzureStore)
        with self._translated("sign an address"):
            return obstore.sign(self._store, "GET", place_of(name), timedelta(seconds=expires_s))

    def _write(self, place: str, content: bytes) -> None:
        """Whole, and for good: the object store itself refuses a second writing of a name."""
        attributes = {"Content-Type": f"image/{place.rpartition('.')[2]}"}
        with self._translated("be written to"), contextlib.suppress(AlreadyExistsError):
            self._store.put(place, content, mode="create", use_multipart=False, attributes=attributes)

    def _read(self, place: str) -> bytes | None:
        with self._translated("be read"):
            try:
                return bytes(self._store.get(place).bytes())
            except FileNotFoundError:
                return None

    def _delete(self, place: str) -> None:
        with self._translated("remove a picture"), contextlib.suppress(FileNotFoundError):
            self._store.delete(place)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"the picture store {self.address} cannot {what}: {_reason(error)}") from error


class DirectoryStore(ObjectStore):
    """An ArtifactStore in a directory, which is made. What a killed process left half-written there is removed."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory)
        with self._translated("be opened"):
            self._directory, self._stage = directory, FileStage(directory)
            self._store = LocalStore(directory)

    def sign(self, name: str, expires_s: float) -> None:  # noqa: ARG002
        """None: a directory has no address."""
        place_of(name)

    def _write(self, place: str, content: bytes) -> None:
        with self._translated("be written to"):
            self._stage.write_once(place, content)

    def _read(self, place: str) -> bytes | None:
        """Without obstore: each new picture is looked for first, and to find nothing it goes to a thread of its own."""
        with self._translated("be read"):
            try:
                return (self._directory / place).read_bytes()
            except FileNotFoundError:
                return None


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
