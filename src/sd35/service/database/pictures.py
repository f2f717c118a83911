"""Whose pictures are whose, in an SQL database."""

from sqlalchemy import delete, func, or_, select, update

from sd35.service.database.connection import Database
from sd35.service.database.tables import pictures


class SqlPictureIndex:
    """A PictureIndex."""

    def __init__(self, database: Database) -> None:
        self._database = database
        row = database.insert(pictures)
        newer = {name: row.excluded[name] for name in ("size_bytes", "created_s")}
        # Made once: making the statement takes longer than carrying it out.
        self._added = row.on_conflict_do_update(index_elements=["digest", "owner"], set_=newer)

    def add(self, digest: str, owner: str, size_bytes: int, now_s: float) -> None:
        """A picture is an owner's."""
        row = {"digest": digest, "owner": owner, "size_bytes": size_bytes, "created_s": now_s}
        with self._database.write(is_lasting=False, is_single=True) as connection:
            connection.execute(self._added, row)

    def owners(self, digest: str) -> set[str]:
        """Whose it is."""
        with self._database.read() as connection:
            return set(connection.execute(select(pictures.c.owner).where(pictures.c.digest == digest)).scalars())

    def owns(self, digest: str, owner: str) -> bool:
        """Whether it is an owner's."""
        return owner in self.owners(digest)

    def remove(self, digest: str, owner: str) -> bool:
        """It is not this owner's any more."""
        all_of_it = select(pictures.c.owner).where(pictures.c.digest == digest).order_by(pictures.c.owner)
        with self._database.write() as connection:
            # Locked, for else of two owners who leave at once each would take the other for the last.
            owners = set(connection.execute(all_of_it.with_for_update()).scalars())
            connection.execute(delete(pictures).where(pictures.c.digest == digest, pictures.c.owner == owner))
            return owners <= {owner}

    def forget(self, digest: str) -> None:
        """It is nobody's any more."""
        with self._database.write() as connection:
            connection.execute(delete(pictures).where(pictures.c.digest == digest))

    def redate(self, from_s: float, until_s: float | None, now_s: float) -> None:
        """Make pictures that are dated in a span as new as `now_s`."""
        span = [pictures.c.created_s >= from_s, *([] if until_s is None else [pictures.c.created_s <= until_s])]
        with self._database.write(is_lasting=False) as connection:
            connection.execute(update(pictures).where(*span).values(created_s=now_s))

    def outdated(self, before_s: float | None, most_bytes: int | None, most: int) -> list[str]:
        """Up to `most` pictures to give up, the oldest first."""
        created_s, size_bytes = func.max(pictures.c.created_s), func.max(pictures.c.size_bytes)
        newer = (created_s.desc(), pictures.c.digest.desc())
        total_bytes = func.sum(size_bytes).over(order_by=newer)
        each = select(pictures.c.digest, created_s.label("created_s"), total_bytes.label("total_bytes"))
        found = each.group_by(pictures.c.digest).subquery()
        bounds = [] if before_s is None else [found.c.created_s < before_s]
        bounds += [] if most_bytes is None else [found.c.total_bytes > most_bytes]
        if not bounds:
            return []
        oldest = select(found.c.digest).where(or_(*bounds)).order_by(found.c.created_s, found.c.digest).limit(most)
        with self._database.read() as connection:
            return list(connection.execute(oldest).scalars())
