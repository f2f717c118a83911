"""Whether this process may write where it has to: in a container, a mounted folder may be another's."""

import os
from pathlib import Path

from sd35.errors import InvalidSetting
from sd35.settings import Settings


def check_folders(settings: Settings) -> None:
    """Make `cache_dir` and `data_dir`. Raises InvalidSetting with whose they are, and what to do about it."""
    for name in ("cache_dir", "data_dir"):
        folder: Path = getattr(settings, name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSetting(f"{name}: {folder} cannot be made: {error.strerror}. {_remedy(folder)}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidSetting(f"{name}: {folder} cannot be written to. {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    """Whose the folder is, or the nearest one above it that is there, and who may write."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    owner, me = there.stat().st_uid, os.geteuid()
    return (
        f"{there} is user {owner}'s, and this process runs as user {me}: give it to that user (chown -R {me} on the"
        f" host's folder), or run as its owner (docker run --user {owner})"
    )
