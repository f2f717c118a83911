"""Errors for directories that cannot be written to. They name the directory's owner and how to fix the problem."""

import os
from pathlib import Path

from sd35.errors import InvalidSetting


def check_writable(setting: str, path: Path) -> None:
    """Raise InvalidSetting if a directory can be neither written to nor created. The error names `setting`."""
    if reason := why_not_writable(path):
        raise InvalidSetting(f"{setting}: {reason}")


def why_not_writable(path: Path) -> str | None:
    """Return None if a directory can be written to or created. Otherwise return the reason and how to fix it."""
    existing = existing_part(path.absolute())
    if os.access(existing, os.W_OK | os.X_OK) and existing.is_dir():
        return None
    refusal = f"{path} cannot be written to: {existing}"
    if not existing.is_dir():
        return f"{refusal} is not a directory; choose another path"
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return f"{refusal} is on a read-only file system; mount a volume there"
    status, process = existing.stat(), f"{os.geteuid()}:{os.getegid()}"
    if status.st_uid == os.geteuid():
        return f"{refusal} belongs to this user, but has mode {status.st_mode & 0o777:o}; run `chmod u+rwx {existing}`"
    owner = f"{status.st_uid}:{status.st_gid}"
    return (
        f"{refusal} belongs to {owner} (user:group, mode {status.st_mode & 0o777:o}), and this process is {process}."
        f" Change the owner with `chown -R {process} {existing}` (for a container's volume, on the host), or run as the"
        f" owner (`docker run --user {owner}`)"
    )


def existing_part(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
