"""A job that is new."""

import secrets

from sd35.storage.jobs import Job, JobSpec, Status


def new_job(job_spec: JobSpec, now_s: float) -> Job:
    """A queued job for a store to add, which numbers it.

    Its id is 32 hexadecimal digits: milliseconds since 1970, so that ids sort by age and lie together in an index,
    then 80 bits of chance, so that nobody guesses another's.
    """
    return Job(f"{int(now_s * 1000):012x}{secrets.token_hex(10)}", 0, job_spec, Status.QUEUED, now_s)
