"""The persistent storage of a service: the database, the image files, and the secret of signed links."""

from typing import NamedTuple, Self

from sd35.access.required_keys import KeysMarker, RequiredKeyStore
from sd35.settings import Settings
from sd35.settings.directories import check_writable
from sd35.storage.blobs.open import open_blob_store
from sd35.storage.database import Database, database_url, open_database
from sd35.storage.images import ImageStore
from sd35.storage.links import Links


class Storage(NamedTuple):
    """The opened stores of a service."""

    database: Database
    images: ImageStore
    links: Links

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open the stores from the settings.

        Raises:
            InvalidSetting: A setting is wrong, a directory or the image store cannot be used, or the service has lost
                its API keys.
            StoreUnavailable: The database cannot be used.
        """
        # If all three settings are set, no store is in `data_dir`.
        if not (settings.database and settings.image_store and settings.link_secret):
            check_writable("data_dir", settings.data_dir)
        database = open_database(database_url(settings))
        keys = RequiredKeyStore(database.keys, KeysMarker(settings.data_dir), database.name)
        try:
            keys.check()
        except BaseException:
            database.close()
            raise
        images = ImageStore(open_blob_store(settings), database.ownership)
        return cls(database._replace(keys=keys), images, Links.from_settings(settings))

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
