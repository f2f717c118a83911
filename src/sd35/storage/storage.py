"""All that outlives the process: what the database keeps, the pictures' files, and the secret of links to them."""

from typing import NamedTuple, Self

from sd35.access.required_keys import KeysMarker, RequiredKeyStore
from sd35.settings import Settings
from sd35.settings.directories import check_writable
from sd35.storage.blobs.base import ArtifactStore
from sd35.storage.blobs.open import open_store
from sd35.storage.database import Stores, database_of, open_stores
from sd35.storage.images import Holdings
from sd35.storage.links import Links


class Kept(NamedTuple):
    """Opened."""

    stores: Stores
    pictures: Holdings
    links: Links

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say. Raises InvalidSetting, also where API keys are required and lost, StoreUnavailable."""
        if not (settings.database and settings.store and settings.link_secret):
            check_writable("data_dir", settings.data_dir)
        stores = open_stores(database_of(settings))
        keys = RequiredKeyStore(stores.keys, KeysMarker(settings.data_dir), stores.name)
        try:
            keys.check()
        except BaseException:
            stores.close()
            raise
        return cls(stores._replace(keys=keys), Holdings(open_store(settings), stores.pictures), Links.of(settings))

    @property
    def files(self) -> ArtifactStore:
        """The pictures' files."""
        return self.pictures.files

    def close(self) -> None:
        """Let go of connections."""
        self.stores.close()
