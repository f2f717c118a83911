"""All that serves: the studio that makes pictures, the desk that keeps them, jobs, and what is stored."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sd35.service.artifacts.contract import ArtifactStore
from sd35.service.artifacts.index import PictureIndex
from sd35.service.desk import Desk, name_of
from sd35.service.jobs.contract import Job, JobStore, Status
from sd35.service.jobs.runner import JobRunner
from sd35.service.studio import Studio


@dataclass(frozen=True)
class Service:
    """What the API calls. Where a method takes `sees`, it is an owner, or None for who sees all."""

    studio: Studio
    desk: Desk
    jobs: JobRunner
    job_store: JobStore
    pictures: ArtifactStore
    index: PictureIndex

    async def stored_job(self, job_id: str, sees: str | None) -> Job | None:
        """One job. Raises StoreUnavailable, as all below."""
        return await asyncio.to_thread(self.job_store.get, job_id, sees)

    async def stored_jobs(self, sees: str | None, statuses: Sequence[Status], before: int | None, most: int) -> list[Job]:
        """The newest first; see `JobStore.page`."""
        return await asyncio.to_thread(self.job_store.page, sees, statuses, before, most)

    async def places(self, jobs: Sequence[Job]) -> dict[str, int]:
        """How many jobs go before each queued one of these."""
        queued = [job.id for job in jobs if job.status is Status.QUEUED]
        return await asyncio.to_thread(lambda: {job_id: self.job_store.place(job_id) for job_id in queued})

    async def forget(self, job: Job, sees: str | None) -> None:
        """Remove a job that has ended, and its picture from its owner's; the file too, where it is nobody else's."""
        await asyncio.to_thread(self.job_store.delete, job.id, sees)
        if job.made:
            await self.disown(job.made.digest, job.order.owner)

    async def picture(self, digest: str, sees: str | None) -> bytes | None:
        """A picture's PNG file; None where there is none, or it is another's."""
        return await asyncio.to_thread(self._picture, digest, sees)

    async def disown(self, digest: str, owner: str) -> bool:
        """Remove a picture from an owner's; whether it was theirs."""
        return await asyncio.to_thread(self._disown, digest, owner)

    def _picture(self, digest: str, sees: str | None) -> bytes | None:
        if sees is not None and not self.index.owns(digest, sees):
            return None
        names = (name_of(digest, is_blurred=is_blurred) for is_blurred in (False, True))
        return next((png for name in names if (png := self.pictures.get(name)) is not None), None)

    def _disown(self, digest: str, owner: str) -> bool:
        if not self.index.owns(digest, owner):
            return False
        if self.index.remove(digest, owner):
            for is_blurred in (False, True):
                self.pictures.delete(name_of(digest, is_blurred=is_blurred))
        return True
