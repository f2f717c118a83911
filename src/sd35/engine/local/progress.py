"""Report the progress of images to their callers, with previews. An error is only logged: it ends no image."""

import time
from collections.abc import Iterable

import structlog

from sd35.engine.base import Pixels, Progress
from sd35.engine.local.generation import Generation, Waiter
from sd35.tensors import to_numpy


def report_progress(waiters: Iterable[tuple[Generation, Waiter]], previews_per_s: float) -> None:
    """Call the progress callback of each waiter, with a preview if the waiter requested previews.

    A generation gets at most `previews_per_s` previews a second. Waiters of one generation get the same preview.
    """
    previews: dict[Generation, Progress] = {}
    for generation, waiter in waiters:
        if not waiter.on_progress:
            continue
        try:
            if waiter.previews and generation not in previews:
                previews[generation] = _with_preview(generation, previews_per_s)
            waiter.on_progress(previews[generation] if waiter.previews else generation.progress())
        except Exception:  # noqa: BLE001  a caller's mistake must not end an image
            structlog.get_logger().exception("a progress callback failed; the image is not affected")


def learn_preview(generation: Generation, pixels: Pixels) -> None:
    """Improve the previews of later images with the latent and the pixels of this one."""
    try:
        generation.pipeline.preview.learn(to_numpy(generation.latent), pixels)
    except Exception:  # noqa: BLE001  the image itself is intact
        structlog.get_logger().exception("an image could not improve the previews; the image is not affected")


def _with_preview(generation: Generation, previews_per_s: float) -> Progress:
    """Return the progress, with a new preview if the last preview is old enough and computing one succeeds."""
    now_s, progress = time.monotonic(), generation.progress()
    if (now_s - generation.previewed_s) * previews_per_s < 1:
        return progress
    generation.previewed_s = now_s
    try:
        return progress._replace(preview=generation.preview())
    except Exception:  # noqa: BLE001  for example too little memory on the device
        structlog.get_logger().exception("a preview could not be computed; the image is not affected")
        return progress
