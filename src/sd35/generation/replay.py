"""Replay: generate an image again from its file, and compare the new image with the file.

The record in the file has the request of the image and the versions that generated it. See images/record.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from sd35.engine.base import OnProgress
from sd35.errors import NotReplayable
from sd35.generation.model_pool import EncodedImage, ModelPool
from sd35.images.png import read_png
from sd35.images.record import USE_ORIGINAL, Maker
from sd35.images.texts import format_of, read_record

MAX_DIFFERENCE = 2  # of 255, at any pixel: the tolerance between backends
MEAN_DIFFERENCE = 0.1  # of 255, over all pixels


class Verdict(NamedTuple):
    """The result of a replay: how much the new image differs from the one in the file.

    Attributes:
        outcome: "same image" if the pixels differ within the tolerance.
        max_difference: The largest difference of a value, out of 255. None if the images differ in size.
        mean_difference: The mean difference over all values, out of 255. None if the images differ in size.
        changed: The changes since the file was generated, for example of a version.
    """

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
        raise NotReplayable(f"it is not a PNG file; {USE_ORIGINAL}")
    record = read_record(png)
    if image_format != "png":
        raise NotReplayable(
            f"it is {image_format.upper()} instead of PNG, so its pixels are not exact; use the PNG file, which a"
            f" service that stores the image returns at /v1/artifacts/{record.request.digest}"
        )
    return EncodedImage(png, record, read_png(png)[0])


def replay(stored_image: EncodedImage, pool: ModelPool, on_progress: OnProgress | None = None) -> Verdict:
    """Generate the image again with the model's current revision and profile, and compare it with the stored image.

    The pool must serve the image's model. Raises InvalidRequest if the model cannot generate the image here, and
    GenerationFailed if the generation fails.
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
        (height, width, _), (new_height, new_width, _) = stored_image.pixels.shape, pixels.shape
        size = f"size: {width}x{height} in the file, {new_width}x{new_height} by its request"
        return Verdict("different", None, None, [size, *changed])
    differences = np.abs(pixels.astype(np.int16) - stored_image.pixels)  # uint8 would wrap around
    largest, mean = int(differences.max()), float(differences.mean())
    is_same = largest <= MAX_DIFFERENCE and mean <= MEAN_DIFFERENCE
    return Verdict("same image" if is_same else "different", largest, mean, changed)


def _changes(then: Maker, now: Maker) -> Iterator[str]:
    """Yield a description of each difference between two generations: of versions, backend, precision and size."""
    labels = {"revision": "checkpoint revision", "backend": "backend", "precision": "precision"}
    for field, label in labels.items():
        before, after = getattr(then, field), getattr(now, field)
        if before != after:
            yield f"{label}: {before[:12]} then, {after[:12]} now"  # enough of a digest to tell two apart
    for name in sorted(then.versions.keys() | now.versions.keys()):
        before, after = then.versions.get(name, "not used"), now.versions.get(name, "not used")
        if before != after:
            yield f"{name}: {before} then, {after} now"
    if (then.drawn_width, then.drawn_height) != (now.drawn_width, now.drawn_height):
        yield f"generated at {then.drawn_width}x{then.drawn_height} then, {now.drawn_width}x{now.drawn_height} now"
