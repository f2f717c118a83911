"""Settings that limit clients, requests and queues."""

from typing import Annotated

from pydantic import BaseModel, Field

from sd35.settings.flag import Flag


class LimitSettings(BaseModel, title="Limits", defer_build=True):
    """Rate limits of a client, and admission limits of the whole service."""

    requests_per_minute: Annotated[int, Flag("REQUESTS")] = Field(
        0,
        ge=0,
        description="Most requests a minute per API key, or per address without keys. Requests for images and reads"
        " of image files count. 0 is unlimited.",
    )
    concurrency: Annotated[int, Flag("IMAGES")] = Field(
        0, ge=0, description="Most images at once per API key, or per address without keys; 0 is unlimited."
    )
    pixels_per_hour: Annotated[int, Flag("PIXELS")] = Field(
        0, ge=0, description="Most pixels an hour per API key, or per address without keys; 0 is unlimited."
    )
    max_pixels: Annotated[int, Flag("PIXELS")] = Field(
        2 * 1024 * 1024, ge=64 * 64, description="Most pixels (width x height) of an image."
    )
    max_in_flight: Annotated[int, Flag("IMAGES")] = Field(
        0,
        ge=0,
        description="Most images that wait or are being generated; further requests are refused with 429. 0 allows"
        " 1.25 times `max_batch_rows`, and at least `max_batch_rows` + 2. During lasting overload, 0 allows only as"
        " many as keep the device busy, so that accepted images wait less.",
    )
    max_wait_s: Annotated[float, Flag("SECONDS")] = Field(
        600, gt=0, description="Longest estimated wait, in seconds, for which an image is accepted. Beyond it, 429."
    )
    max_jobs: Annotated[int, Flag("JOBS")] = Field(
        10_000, ge=1, description="Most jobs that wait; further ones are refused with 429."
    )
