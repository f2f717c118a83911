"""Whether a directory can be written to, and if not, whose it is and what to do: most often, it is someone's volume."""

import os
from pathlib import Path

from sd35.errors import InvalidSetting


def check_writable(setting: str, path: Path) -> None:
    """Raises InvalidSetting where nothing can be written into a directory, or it cannot be made."""
    if why := why_not_writable(path):
        raise InvalidSetting(f"{setting}: {why}")


def why_not_writable(path: Path) -> str | None:
    """A sentence with the owner and the remedy; None where all is well."""
    found = existing_part(path.absolute())
    if os.access(found, os.W_OK | os.X_OK) and found.is_dir():
        return None
    refusal = f"{path} cannot be written to: {found}"
    if not found.is_dir():
        return f"{refusal} is not a directory"
    if os.statvfs(found).f_flag & os.ST_RDONLY:
        return f"{refusal} is on a read-only file system; mount a volume there"
    state, mine = found.stat(), f"{os.geteuid()}:{os.getegid()}"
    owner = f"{state.st_uid}:{state.st_gid}"
    return (
        f"{refusal} belongs to {owner} (user and group; mode {state.st_mode & 0o777:o}), and this process is {mine};"
        f" let it have that (chown -R {mine}, of a container's volume outside), or run as the owner (docker run --user"
        f" {owner})"
    )


def existing_part(path: Path) -> Path:
    """The directory itself, or what there is of its path, in which it would be made."""
    return next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
