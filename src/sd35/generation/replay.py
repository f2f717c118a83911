"""Replay: generate an image again from the record in its file, and compare the two."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from sd35.engine.base import OnProgress
from sd35.errors import NotReplayable
from sd35.generation.model_pool import EncodedImage, ModelPool
from sd35.images.png import read_png
from sd35.images.record import Maker
from sd35.images.texts import format_of, read_record

MAX_DIFFERENCE = 2  # of 255, at any pixel: the tolerance between backends
MEAN_DIFFERENCE = 0.1  # of 255, over all pixels


class Verdict(NamedTuple):
    """The result of a replay. Differences are out of 255. `changed` lists changes since the file was generated."""

    outcome: Literal["same bytes", "same image", "different"]
    max_difference: int | None
    mean_difference: float | None
    changed: list[str]

    @property
    def is_same(self) -> bool:
        """Whether the image is the same, to the byte or within the tolerance."""
        return self.outcome != "different"


def read_stored_image(png: bytes) -> EncodedImage:
    """Read an image's PNG file. Raises NotReplayable if it has no record, or if the file is of another format."""
    image_format = format_of(png)
    if image_format is None:
        raise NotReplayable("it is not a PNG file")
    record = read_record(png)
    if image_format != "png":
        raise NotReplayable(
            f"it is a {image_format.upper()} file, so its pixels are not exact: replay the PNG file of"
            f" {record.request.digest} instead"
        )
    return EncodedImage(png, record, read_png(png)[0])


def replay(stored_image: EncodedImage, pool: ModelPool, on_progress: OnProgress | None = None) -> Verdict:
    """Generate the image again with the model's current profile, and compare.

    Raises UnknownModel or InvalidRequest if it cannot be generated here, and GenerationFailed.
    """
    original = stored_image.record.request
    model = pool.models[original.model]
    request = replace(original, revision=model.revision, profile=model.profile)
    generated = pool.encode(pool.submit(request, on_progress).future.result())
    changed = list(_changes(stored_image.record.maker, generated.record.maker))
    if not changed and generated.record.request.profile != original.profile:
        changed = [f"profile: {original.profile} then, {generated.record.request.profile} now"]
    if generated.png == stored_image.png:
        return Verdict("same bytes", 0, 0.0, changed)
    pixels = generated.pixels
    if pixels.shape != stored_image.pixels.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (stored_image.pixels.shape, pixels.shape)]
        return Verdict("different", None, None, [f"size: {sizes[0]} in the file, {sizes[1]} by its request", *changed])
    differences = np.abs(pixels.astype(np.int16) - stored_image.pixels)
    largest, mean = int(differences.max()), float(differences.mean())
    is_same = largest <= MAX_DIFFERENCE and mean <= MEAN_DIFFERENCE
    return Verdict("same image" if is_same else "different", largest, mean, changed)


def _changes(then: Maker, now: Maker) -> Iterator[str]:
    for what in ("revision", "backend", "precision"):
        before, after = getattr(then, what), getattr(now, what)
        if before != after:
            yield f"{'checkpoint ' if what == 'revision' else ''}{what}: {before[:12]} then, {after[:12]} now"
    for name in sorted(then.versions.keys() | now.versions.keys()):
        before, after = then.versions.get(name, "not used"), now.versions.get(name, "not used")
        if before != after:
            yield f"{name}: {before} then, {after} now"
    if (then.drawn_width, then.drawn_height) != (now.drawn_width, now.drawn_height):
        yield f"generated at {then.drawn_width}x{then.drawn_height} then, {now.drawn_width}x{now.drawn_height} now"
