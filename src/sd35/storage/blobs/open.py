"""Open the blob store from the settings."""

from contextlib import suppress
from pathlib import Path

from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.settings import Settings
from sd35.storage.blobs.base import BlobStore
from sd35.storage.blobs.memory import MemoryBlobStore

MEMORY = "memory"
DIRECTORY = "images"  # in the data directory, if the setting `image_store` is not set


def open_blob_store(settings: Settings, *, check: bool = True) -> BlobStore:
    """Open the blob store of the setting `image_store`. Blocks.

    Args:
        settings: Settings of the service.
        check: Whether to test the store by writing a file.

    Raises:
        InvalidSetting: The setting is wrong, or the store cannot be used. The message has the reason.
    """
    address = settings.image_store
    if address == MEMORY:
        return MemoryBlobStore()
    from sd35.storage.blobs.directory import DirectoryStore
    from sd35.storage.blobs.object_store import SCHEMES, ObjectStore

    scheme, is_url, _ = (address or "").partition("://")
    if is_url and scheme not in SCHEMES:
        urls = ", ".join(f"{known}://BUCKET/PREFIX" for known in SCHEMES)
        raise InvalidSetting(f"image_store: got {address!r}; allowed: {urls}, a directory, or {MEMORY!r}")
    try:
        directory = Path(address).expanduser() if address else _default_directory(settings.data_dir)
        store = ObjectStore(address) if address and is_url else DirectoryStore(directory.absolute())
        if check:
            store.check()
    except StoreUnavailable as error:
        raise InvalidSetting(f"image_store: {error}") from error
    return store


def _default_directory(data_dir: Path) -> Path:
    """Return the directory `images` in the data directory. If only `pictures` of an earlier version exists, renames it.

    Raises InvalidSetting if `pictures` cannot be renamed. Without the error, its images would seem to be lost.
    """
    directory, former = data_dir / DIRECTORY, data_dir / "pictures"
    try:
        if former.is_dir() and not directory.exists():
            with suppress(FileNotFoundError):  # another process has just renamed it
                former.rename(directory)
    except OSError as error:
        raise InvalidSetting(
            f"image_store: {former}, the image directory of an earlier version, cannot be renamed to {directory.name}:"
            f" {error.strerror}. Rename it yourself, or set image_store to {former}"
        ) from error
    return directory
