"""The picture store that the settings name."""

from pathlib import Path

from sd35.errors import InvalidSetting, StoreUnavailable
from sd35.settings import Settings
from sd35.storage.blobs.base import ArtifactStore
from sd35.storage.blobs.memory import MemoryStore

MEMORY = "memory"


def open_store(settings: Settings, *, is_tried: bool = True) -> ArtifactStore:
    """The store, tried out. Takes a minute at most. Raises InvalidSetting where it cannot be used, with the reason.

    Where it is not to be tried, nothing is written.
    """
    where = settings.store
    if where == MEMORY:
        return MemoryStore()
    from sd35.storage.blobs.object_store import SCHEMES, DirectoryStore, ObjectStore

    scheme, is_url, _ = (where or "").partition("://")
    if is_url and scheme not in SCHEMES:
        known = ", ".join(f"{each}://BUCKET/PREFIX" for each in SCHEMES)
        raise InvalidSetting(f"store: got {where!r}; allowed: {known}, a directory, or {MEMORY!r}")
    try:
        directory = Path(where).expanduser() if where else settings.data_dir / "pictures"
        store = ObjectStore(where) if where and is_url else DirectoryStore(directory.absolute())
        if is_tried:
            store.check()
    except StoreUnavailable as error:
        raise InvalidSetting(f"store: {error}") from error
    return store
