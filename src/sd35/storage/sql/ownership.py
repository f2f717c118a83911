"""Ownership index in an SQL database."""

from sqlalchemy import BigInteger, Connection, Text, bindparam, delete, func, or_, select, update

from sd35.storage.names import digest_of, names_of
from sd35.storage.sql.connection import SqlDatabase
from sd35.storage.sql.tables import checksums, images


class SqlOwnershipIndex:
    """An OwnershipIndex in an SQL database."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database
        # The statements of `add`, `add_checksum` and `checksums` run for every image. Building one takes longer than
        # executing it, so they are built once.
        insert = database.insert(images)
        newer = {name: insert.excluded[name] for name in ("size_bytes", "created_s")}
        self._add = insert.on_conflict_do_update(index_elements=["digest", "owner"], set_=newer)
        new = select(
            bindparam("name", type_=Text), bindparam("sha256", type_=Text), bindparam("size", type_=BigInteger)
        )
        # The SELECT returns no row if nobody owns the image, so the INSERT then does nothing.
        owned = new.where(select(images.c.owner).where(images.c.digest == bindparam("digest")).exists())
        checksum = database.insert(checksums).from_select(["name", "sha256", "size_bytes"], owned)
        self._add_checksum = checksum.on_conflict_do_nothing()
        columns = checksums.c.sha256, checksums.c.size_bytes
        self._checksums = select(*columns).where(checksums.c.name == bindparam("name"))

    def add(self, digest: str, owner: str, size_bytes: int, now_s: float) -> None:
        """Add an owner to an image, or change the date of an existing owner to `now_s`."""
        row = {"digest": digest, "owner": owner, "size_bytes": size_bytes, "created_s": now_s}
        with self._database.write(is_durable=False, is_single=True) as connection:
            connection.execute(self._add, row)

    def owners(self, digest: str) -> set[str]:
        """Return the owners of an image."""
        with self._database.read() as connection:
            return set(connection.execute(select(images.c.owner).where(images.c.digest == digest)).scalars())

    def remove(self, digest: str, owner: str) -> bool:
        """Remove an owner from an image. Returns whether no owner is left. If so, also deletes the checksums."""
        all_owners = select(images.c.owner).where(images.c.digest == digest).order_by(images.c.owner)
        with self._database.write() as connection:
            # Locks the rows of all owners. Otherwise, if two transactions removed the last two owners at the same time,
            # each would find the other owner, and neither would delete the checksums.
            owners = set(connection.execute(all_owners.with_for_update()).scalars())
            connection.execute(delete(images).where(images.c.digest == digest, images.c.owner == owner))
            is_unowned = owners <= {owner}
            if is_unowned:
                _delete_checksums(connection, digest)
            return is_unowned

    def delete(self, digest: str) -> None:
        """Delete an image with all its owners and checksums."""
        with self._database.write() as connection:
            connection.execute(delete(images).where(images.c.digest == digest))
            _delete_checksums(connection, digest)

    def add_checksum(self, name: str, checksum: str, size_bytes: int) -> None:
        """See `OwnershipIndex.add_checksum`."""
        row = {"name": name, "sha256": checksum, "size": size_bytes, "digest": digest_of(name)}
        with self._database.write(is_durable=False, is_single=True) as connection:
            connection.execute(self._add_checksum, row)

    def checksums(self, name: str) -> dict[str, int]:
        """Return the recorded SHA-256 checksums of a file, each with the size of its content in bytes."""
        with self._database.read() as connection:
            return {row.sha256: row.size_bytes for row in connection.execute(self._checksums, {"name": name})}

    def digests(self, after: str, limit: int) -> list[str]:
        """Return the first `limit` digests of owned images that are greater than `after`."""
        greater = select(images.c.digest).where(images.c.digest > after).distinct()
        with self._database.read() as connection:
            return list(connection.execute(greater.order_by(images.c.digest).limit(limit)).scalars())

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Set the dates between `from_s` and `until_s` to `now_s`. `until_s=None` means no upper bound."""
        span = [images.c.created_s >= from_s, *([] if until_s is None else [images.c.created_s <= until_s])]
        with self._database.write(is_durable=False) as connection:
            connection.execute(update(images).where(*span).values(created_s=now_s))

    def expired(self, before_s: float | None, max_bytes: int | None, limit: int) -> list[str]:
        """Return up to `limit` digests of images to delete, oldest first."""
        created_s, size_bytes = func.max(images.c.created_s), func.max(images.c.size_bytes)
        newest_first = (created_s.desc(), images.c.digest.desc())
        total_bytes = func.sum(size_bytes).over(order_by=newest_first)  # of the image and all newer ones
        columns = select(images.c.digest, created_s.label("created_s"), total_bytes.label("total_bytes"))
        dated = columns.group_by(images.c.digest).subquery()
        bounds = [] if before_s is None else [dated.c.created_s < before_s]
        bounds += [] if max_bytes is None else [dated.c.total_bytes > max_bytes]
        if not bounds:
            return []
        oldest = select(dated.c.digest).where(or_(*bounds)).order_by(dated.c.created_s, dated.c.digest).limit(limit)
        with self._database.read() as connection:
            return list(connection.execute(oldest).scalars())


def _delete_checksums(connection: Connection, digest: str) -> None:
    connection.execute(delete(checksums).where(checksums.c.name.in_(names_of(digest))))
