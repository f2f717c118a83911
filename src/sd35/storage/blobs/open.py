"""Open the blob store that the settings name."""

from contextlib import suppress
from pathlib import Path

from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.settings import Settings
from sd35.storage.blobs.base import BlobStore
from sd35.storage.blobs.memory import MemoryBlobStore

MEMORY = "memory"


def open_blob_store(settings: Settings, *, check: bool = True) -> BlobStore:
    """Open the store. With `check`, also test it, which takes at most a minute; else nothing is written.

    Raises InvalidSetting, with the reason, if the store cannot be used.
    """
    address = settings.image_store
    if address == MEMORY:
        return MemoryBlobStore()
    from sd35.storage.blobs.directory import DirectoryStore
    from sd35.storage.blobs.object_store import SCHEMES, ObjectStore

    scheme, is_url, _ = (address or "").partition("://")
    if is_url and scheme not in SCHEMES:
        known = ", ".join(f"{each}://BUCKET/PREFIX" for each in SCHEMES)
        raise InvalidSetting(f"image_store: got {address!r}; allowed: {known}, a directory, or {MEMORY!r}")
    try:
        directory = Path(address).expanduser() if address else _default_directory(settings.data_dir)
        store = ObjectStore(address) if address and is_url else DirectoryStore(directory.absolute())
        if check:
            store.check()
    except StoreUnavailable as error:
        raise InvalidSetting(f"image_store: {error}") from error
    return store


def _default_directory(data_dir: Path) -> Path:
    """Return `images` in the data directory. Earlier versions called it `pictures`: renames such a directory."""
    directory = data_dir / "images"
    if not directory.exists():
        with suppress(OSError):
            (data_dir / "pictures").rename(directory)
    return directory
