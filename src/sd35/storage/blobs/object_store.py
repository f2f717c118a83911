"""Image files in an object store, through obstore."""

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from sd35.storage.blobs.base import PathBlobStore
from sd35.storage.names import path_of

SCHEMES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}  # each with the prefix of its environment variables
# A call ends within a minute: timeouts are not retried, refused connections are retried twice.
_CONNECT_TIMEOUT_S, _TIMEOUT_S, _MAX_RETRIES, _RETRY_TIMEOUT_S = 5, 20, 2, 20
_CAUSE = re.compile(r'\b(?:message|error): "([^"]+)"')  # the last match in obstore's description is the root cause
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")  # in error responses of S3 and Azure
_QUERY = re.compile(r"\?\S+")  # the query of a URL may contain a signature
_BODY = re.compile(r": *<.*")  # the XML body of an error response; `_MESSAGE` extracts its message
# Addresses of metadata services: obstore asks these for credentials if the environment has none.
_NO_CREDENTIALS = re.compile(r"169\.254\.\d+\.\d+|metadata\.google\.internal")


class ObjectStore(PathBlobStore):
    """A BlobStore in a bucket of S3, Google Cloud Storage or Azure: `s3://bucket/prefix`, `gs://...`, `az://...`.

    Credentials, region and endpoint come from the environment: `AWS_...`, `GOOGLE_...`, `AZURE_...`.
    """

    _ERRORS = (BaseError, OSError)

    def __init__(self, url: str) -> None:
        self.address = url
        prefix = SCHEMES[url.partition("://")[0]]
        endpoints = [value for name, value in os.environ.items() if name.startswith(prefix) and "ENDPOINT" in name]
        client: Any = {
            # HTTP without TLS is allowed if the operator has set an endpoint with http://.
            "allow_http": any(value.startswith("http://") for value in endpoints),
            "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
            "timeout": timedelta(seconds=_TIMEOUT_S),
        }
        retry: Any = {"max_retries": _MAX_RETRIES, "retry_timeout": timedelta(seconds=_RETRY_TIMEOUT_S)}
        with self._translate_errors("be opened"):
            self._store: Any = from_url(url, client_options=client, retry_config=retry)

    def sign(self, name: str, expires_s: float) -> str | None:
        """Return a presigned URL of the file."""
        assert isinstance(self._store, S3Store | GCSStore | AzureStore)  # the type that `obstore.sign` needs
        with self._translate_errors("sign a URL"):
            return obstore.sign(self._store, "GET", path_of(name), timedelta(seconds=expires_s))

    def _write_once(self, path: str, content: bytes) -> bool:
        """Write an object. Returns False if it exists: the object store itself refuses to replace it."""
        try:
            self._put(path, content, "create")
        except AlreadyExistsError:
            return False
        return True

    def _overwrite(self, path: str, content: bytes) -> None:
        self._put(path, content, "overwrite")

    def _put(self, path: str, content: bytes, mode: str) -> None:
        """Write an object with its media type. `mode` is obstore's: `create` or `overwrite`."""
        attributes = {"Content-Type": f"image/{path.rpartition('.')[2]}"}
        self._store.put(path, content, mode=mode, use_multipart=False, attributes=attributes)

    def _read(self, path: str) -> bytes:
        return bytes(self._store.get(path).bytes())

    def _size(self, path: str) -> int:
        return int(self._store.head(path)["size"])

    def _paths(self) -> Iterator[str]:
        for page in self._store.list(chunk_size=1000):
            yield from (listed["path"] for listed in page)

    def _delete(self, path: str) -> None:
        self._store.delete(path)

    @staticmethod
    def _reason(error: Exception) -> str:
        """Return a description of an error in one line. obstore's own description has many lines."""
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        first, _, details = str(error).partition("\n")
        if _NO_CREDENTIALS.search(first):
            return "this machine has no credentials; set them in the environment (AWS_..., GOOGLE_... or AZURE_...)"
        causes = _MESSAGE.findall(str(error)) or _CAUSE.findall(details)
        if not causes and "TimedOut" in details:
            causes = ["timed out"]
        summary = _QUERY.sub("", _BODY.sub("", first))
        return f"{summary} ({causes[-1]})" if causes and causes[-1] not in summary else summary
