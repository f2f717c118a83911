"""Whose images are whose, and the checksums of their files, in an SQL database."""

from sqlalchemy import BigInteger, Connection, Text, bindparam, delete, func, or_, select, update

from sd35.storage.names import digest_of, names_of
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.tables import checksums, images


class SqlOwnershipIndex:
    """A OwnershipIndex."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database
        row = database.insert(images)
        newer = {name: row.excluded[name] for name in ("size_bytes", "created_s")}
        # Made once: making the statement takes longer than carrying it out.
        self._added = row.on_conflict_do_update(index_elements=["digest", "owner"], set_=newer)
        new = select(
            bindparam("name", type_=Text), bindparam("sha256", type_=Text), bindparam("size", type_=BigInteger)
        )
        owned = new.where(select(images.c.owner).where(images.c.digest == bindparam("digest")).exists())
        recorded = database.insert(checksums).from_select(["name", "sha256", "size_bytes"], owned)
        self._recorded = recorded.on_conflict_do_nothing()
        self._read = select(checksums.c.sha256, checksums.c.size_bytes).where(checksums.c.name == bindparam("name"))

    def add(self, digest: str, owner: str, size_bytes: int, now_s: float) -> None:
        """An image is an owner's."""
        row = {"digest": digest, "owner": owner, "size_bytes": size_bytes, "created_s": now_s}
        with self._database.write(is_lasting=False, is_single=True) as connection:
            connection.execute(self._added, row)

    def owners(self, digest: str) -> set[str]:
        """Whose it is."""
        with self._database.read() as connection:
            return set(connection.execute(select(images.c.owner).where(images.c.digest == digest)).scalars())

    def owns(self, digest: str, owner: str) -> bool:
        """Whether it is an owner's."""
        return owner in self.owners(digest)

    def remove(self, digest: str, owner: str) -> bool:
        """It is not this owner's any more."""
        all_of_it = select(images.c.owner).where(images.c.digest == digest).order_by(images.c.owner)
        with self._database.write() as connection:
            # Locked, for else of two owners who leave at once each would take the other for the last.
            owners = set(connection.execute(all_of_it.with_for_update()).scalars())
            connection.execute(delete(images).where(images.c.digest == digest, images.c.owner == owner))
            is_nobodys = owners <= {owner}
            if is_nobodys:
                _forget_checksums(connection, digest)
            return is_nobodys

    def forget(self, digest: str) -> None:
        """It is nobody's any more."""
        with self._database.write() as connection:
            connection.execute(delete(images).where(images.c.digest == digest))
            _forget_checksums(connection, digest)

    def record(self, name: str, checksum: str, size_bytes: int) -> None:
        """Record the SHA-256 and the size of a content that a file may have."""
        row = {"name": name, "sha256": checksum, "size": size_bytes, "digest": digest_of(name)}
        with self._database.write(is_lasting=False, is_single=True) as connection:
            connection.execute(self._recorded, row)

    def checksums(self, name: str) -> dict[str, int]:
        """Return what was recorded for a file."""
        with self._database.read() as connection:
            return {row.sha256: row.size_bytes for row in connection.execute(self._read, {"name": name})}

    def digests(self, after: str, most: int) -> list[str]:
        """Return up to `most` images that somebody owns, in order."""
        behind = select(images.c.digest).where(images.c.digest > after).distinct()
        with self._database.read() as connection:
            return list(connection.execute(behind.order_by(images.c.digest).limit(most)).scalars())

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Make images that are dated in a span as new as `now_s`."""
        span = [images.c.created_s >= from_s, *([] if until_s is None else [images.c.created_s <= until_s])]
        with self._database.write(is_lasting=False) as connection:
            connection.execute(update(images).where(*span).values(created_s=now_s))

    def outdated(self, before_s: float | None, most_bytes: int | None, most: int) -> list[str]:
        """Up to `most` images to give up, the oldest first."""
        created_s, size_bytes = func.max(images.c.created_s), func.max(images.c.size_bytes)
        newer = (created_s.desc(), images.c.digest.desc())
        total_bytes = func.sum(size_bytes).over(order_by=newer)
        each = select(images.c.digest, created_s.label("created_s"), total_bytes.label("total_bytes"))
        found = each.group_by(images.c.digest).subquery()
        bounds = [] if before_s is None else [found.c.created_s < before_s]
        bounds += [] if most_bytes is None else [found.c.total_bytes > most_bytes]
        if not bounds:
            return []
        oldest = select(found.c.digest).where(or_(*bounds)).order_by(found.c.created_s, found.c.digest).limit(most)
        with self._database.read() as connection:
            return list(connection.execute(oldest).scalars())


def _forget_checksums(connection: Connection, digest: str) -> None:
    connection.execute(delete(checksums).where(checksums.c.name.in_(names_of(digest))))
