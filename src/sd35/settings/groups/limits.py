"""Settings of rate limits, admission and queues."""

from typing import Annotated

from pydantic import BaseModel, Field

from sd35.settings.flag import Flag


class LimitSettings(BaseModel, title="Limits", defer_build=True):
    """Rate limits of each client, and admission limits of the whole service."""

    requests_per_minute: Annotated[int, Flag("REQUESTS")] = Field(
        0,
        ge=0,
        description="Rate limit of each API key (of each client address if there are no keys): requests per minute."
        " Only requests for images, and for `/sdapi/v1/png-info`, count. 0 is unlimited.",
    )
    concurrency: Annotated[int, Flag("IMAGES")] = Field(
        0,
        ge=0,
        description="Maximum number of images at a time for each API key (each client address if there are no keys)."
        " Jobs do not count. 0 is unlimited.",
    )
    pixels_per_hour: Annotated[int, Flag("PIXELS")] = Field(
        0,
        ge=0,
        description="Rate limit of each API key (of each client address if there are no keys): pixels per hour; 0 is"
        " unlimited.",
    )
    max_pixels: Annotated[int, Flag("PIXELS")] = Field(
        2 * 1024 * 1024, ge=64 * 64, description="Maximum number of pixels of an image: width times height."
    )
    max_in_flight: Annotated[int, Flag("IMAGES")] = Field(
        0,
        ge=0,
        description="Maximum number of images that are waiting or being generated. Further requests get the HTTP"
        " status 429. 0 means 1.25 times `max_batch_rows`, or `max_batch_rows` + 2 if that is more. With 0, the service"
        " accepts fewer images during lasting overload: only as many as keep the device busy.",
    )
    max_wait_s: Annotated[float, Flag("SECONDS")] = Field(
        600, gt=0, description="Maximum estimated wait of an image, in seconds. Above it, requests get status 429."
    )
    max_jobs: Annotated[int, Flag("JOBS")] = Field(
        10_000, ge=1, description="Maximum number of jobs that wait in the queue. Further jobs get status 429."
    )
