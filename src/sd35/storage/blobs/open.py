"""The image store that the settings name."""

from contextlib import suppress
from pathlib import Path

from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.settings import Settings
from sd35.storage.blobs.base import BlobStore
from sd35.storage.blobs.memory import MemoryBlobStore

MEMORY = "memory"


def open_store(settings: Settings, *, is_tried: bool = True) -> BlobStore:
    """The store, tried out. Takes a minute at most. Raises InvalidSetting where it cannot be used, with the reason.

    Where it is not to be tried, nothing is written.
    """
    where = settings.image_store
    if where == MEMORY:
        return MemoryBlobStore()
    from sd35.storage.blobs.object_store import SCHEMES, DirectoryStore, ObjectStore

    scheme, is_url, _ = (where or "").partition("://")
    if is_url and scheme not in SCHEMES:
        known = ", ".join(f"{each}://BUCKET/PREFIX" for each in SCHEMES)
        raise InvalidSetting(f"image_store: got {where!r}; allowed: {known}, a directory, or {MEMORY!r}")
    try:
        directory = Path(where).expanduser() if where else _default_directory(settings.data_dir)
        store = ObjectStore(where) if where and is_url else DirectoryStore(directory.absolute())
        if is_tried:
            store.check()
    except StoreUnavailable as error:
        raise InvalidSetting(f"image_store: {error}") from error
    return store


def _default_directory(data_dir: Path) -> Path:
    """Return `images` in the data directory. Versions before called it `pictures`: such a one is renamed."""
    directory = data_dir / "images"
    if not directory.exists():
        with suppress(OSError):
            (data_dir / "pictures").rename(directory)
    return directory
