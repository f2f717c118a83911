"""All that outlives the process: what the database keeps, the pictures' files, and the secret of links to them."""

from typing import NamedTuple, Self

from sd35.service.artifacts.contract import ArtifactStore
from sd35.service.artifacts.links import Links
from sd35.service.artifacts.stores import open_store
from sd35.service.stores import Stores, database_of, open_stores
from sd35.settings import Settings
from sd35.settings.directories import check_writable


class Kept(NamedTuple):
    """Opened."""

    stores: Stores
    files: ArtifactStore
    links: Links

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say. Raises InvalidSetting, StoreUnavailable."""
        if not (settings.database and settings.store and settings.link_secret):
            check_writable("data_dir", settings.data_dir)
        return cls(open_stores(database_of(settings)), open_store(settings), Links.of(settings))

    def close(self) -> None:
        """Let go of connections."""
        self.stores.close()
