"""All that outlives the process: what the database keeps, the images' files, and the secret of links to them."""

from typing import NamedTuple, Self

from sd35.access.required_keys import KeysMarker, RequiredKeyStore
from sd35.settings import Settings
from sd35.settings.directories import check_writable
from sd35.storage.blobs.base import BlobStore
from sd35.storage.blobs.open import open_store
from sd35.storage.database import Database, database_url_of, open_database
from sd35.storage.images import ImageStore
from sd35.storage.links import Links


class Storage(NamedTuple):
    """Opened."""

    database: Database
    images: ImageStore
    links: Links

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say. Raises InvalidSetting, also where API keys are required and lost, StoreUnavailable."""
        if not (settings.database and settings.image_store and settings.link_secret):
            check_writable("data_dir", settings.data_dir)
        database = open_database(database_url_of(settings))
        keys = RequiredKeyStore(database.keys, KeysMarker(settings.data_dir), database.name)
        try:
            keys.check()
        except BaseException:
            database.close()
            raise
        return cls(database._replace(keys=keys), ImageStore(open_store(settings), database.images), Links.of(settings))

    @property
    def files(self) -> BlobStore:
        """The images' files."""
        return self.images.files

    def close(self) -> None:
        """Let go of connections."""
        self.database.close()
