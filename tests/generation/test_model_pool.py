"""Resolving requests, the sizes of images, their PNG files, and replay."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sd35.checkpoints.image_sizes import generated_size
from sd35.errors import InvalidRequest, NotReplayable, UnknownModel
from sd35.generation.model_pool import EncodedImage, ModelPool
from sd35.generation.params import GenerationParams
from sd35.generation.replay import read_stored_image, replay
from sd35.images.png import read_png, write_png
from sd35.images.record import DIGEST_KEY, MAKER_KEY, REQUEST_KEY
from sd35.request import SIZE_MULTIPLE_PX
from tests.support.fake_backend import LARGE, MINI, FakeBackend, fake_pool

MAX_PIXELS = 2048 * 2048
sides = st.integers(1, 128).map(lambda count: count * SIZE_MULTIPLE_PX)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelPool]:
    """A model pool with two models. The first is the default, and its images can be enlarged."""
    with fake_pool(tmp_path_factory.mktemp("models")) as pool:
        yield pool


def generate(pool: ModelPool, params: GenerationParams) -> EncodedImage:
    """Generate an image and return its file."""
    request = pool.resolve(params)
    return pool.encode(pool.submit(request).future.result())


def test_omitted_parameters_get_the_defaults_of_the_model_and_a_random_seed(pool: ModelPool):
    """The default model is the first."""
    first, second = pool.resolve(GenerationParams("a cat")), pool.resolve(GenerationParams("a cat"))
    assert (first.model, first.width, first.height, first.steps, first.guidance_scale) == ("mini", 128, 128, 4, 4.5)
    assert first.profile == "double/float32"
    assert first.seed != second.seed
    large = pool.resolve(GenerationParams("a cat", model="large"))
    assert (large.width, large.steps, large.guidance_scale) == (1024, 30, 3.5)


def test_zero_is_not_an_omitted_parameter(pool: ModelPool):
    request = pool.resolve(GenerationParams("a cat", seed=0, guidance_scale=0))
    assert (request.seed, request.guidance_scale) == (0, 0.0)


def test_layers_are_skipped_by_default_if_the_model_supports_it(pool: ModelPool):
    """The default scale is the card's. A model without skip-layer guidance only allows 0."""
    for model, requested, scale in (("large", None, 2.8), ("large", 1, 1.0), ("large", 0, 0.0), ("mini", None, 0.0)):
        assert (
            pool.resolve(GenerationParams("a cat", model=model, skip_layer_scale=requested)).skip_layer_scale == scale
        )
    assert pool.resolve(GenerationParams("a cat", skip_layer_scale=0)).skip_layer_scale == 0
    with pytest.raises(
        InvalidRequest, match=r"skip_layer_scale: got 2\.8; allowed: 0, because the model mini does not support"
    ):
        pool.resolve(GenerationParams("a cat", skip_layer_scale=2.8))
    with pytest.raises(InvalidRequest, match=r"skip_layer_scale: got 10\.5; allowed: 0\.0 to 10\.0"):
        pool.resolve(GenerationParams("a cat", model="large", skip_layer_scale=10.5))


def test_skip_layer_guidance_is_refused_if_the_backend_cannot_skip_layers(pool: ModelPool, tmp_path: Path):
    """The default is then 0. Refused are requests with another scale, and replays of images from other backends."""
    backend = FakeBackend()
    backend.can_skip_layers = False
    params = GenerationParams("a cat", model="large", seed=1, width=256, height=256, steps=10)
    stored_image = read_stored_image(generate(pool, params).png)
    assert stored_image.record.request.skip_layer_scale == 2.8
    with fake_pool(tmp_path, backend) as unable:
        assert unable.resolve(params).skip_layer_scale == 0
        for attempt in (
            lambda: unable.resolve(replace(params, skip_layer_scale=1)),
            lambda: replay(stored_image, unable),
        ):
            with pytest.raises(InvalidRequest, match=r"skip_layer_scale: .* the double backend does not support"):
                attempt()


def test_the_error_of_an_unknown_model_lists_the_served_models(pool: ModelPool):
    with pytest.raises(UnknownModel, match="model: got 'medium'; allowed: mini, large"):
        pool.resolve(GenerationParams("a cat", model="medium"))


@pytest.mark.parametrize(
    ("requested", "generated"),
    [
        ((128, 128), (128, 128)),
        ((256, 64), (256, 64)),
        ((1024, 1024), (128, 128)),
        ((1024, 512), (176, 96)),
        ((512, 2048), (64, 256)),
        ((272, 256), (128, 128)),
    ],
)
def test_sizes_above_the_range_are_generated_at_the_native_number_of_pixels(
    requested: tuple[int, int], generated: tuple[int, int]
):
    """With nearly the same aspect ratio. Sizes within the range are generated as requested."""
    assert generated_size(*requested, MINI, MAX_PIXELS) == generated


@given(sides, sides)
def test_every_size_is_generated_within_the_range_or_refused(width: int, height: int):
    """Sizes that are too narrow, too small or too large are refused."""
    is_possible = max(width, height) <= 4 * min(width, height) and min(width, height) >= 64
    if is_possible and width * height <= MAX_PIXELS:
        generated = generated_size(width, height, MINI, MAX_PIXELS)
        assert all(64 <= side <= 256 and side % SIZE_MULTIPLE_PX == 0 for side in generated)
        assert (generated == (width, height)) == (max(width, height) <= 256)
    else:
        with pytest.raises(InvalidRequest, match=r"^(width|height): got \d+; allowed: "):
            generated_size(width, height, MINI, MAX_PIXELS)


@pytest.mark.parametrize(
    ("size", "card", "message"),
    [
        ((1024, 128), MINI, "width: got 1024; allowed: 64 to 256, or larger with an aspect ratio of at most 4:1"),
        ((48, 64), MINI, "width: got 48; allowed: 64 to 256, or larger"),
        ((4096, 4096), MINI, "at most 4194304 pixels in total (width x height)"),
        ((2064, 256), LARGE, "width: got 2064; allowed: 256 to 2048"),
        ((512, 128), LARGE, "height: got 128; allowed: 256 to 2048"),
    ],
)
def test_a_size_outside_the_range_of_the_model_is_refused(size: tuple[int, int], card: object, message: str):
    """The error names the side, its value and the range. Only models that enlarge allow larger sizes."""
    with pytest.raises(InvalidRequest) as refused:
        generated_size(*size, card, MAX_PIXELS)  # type: ignore[arg-type]
    assert message in str(refused.value)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.text(st.characters(codec="utf-8"), max_size=20))
def test_a_png_file_keeps_pixels_and_text(width: int, height: int, seed: int, text: str):
    """Pillow reads the same. The same content gives the same bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    text = text.replace("\0", "")
    written = write_png(pixels, {"key": text})
    assert written == write_png(pixels, {"key": text})
    read, texts = read_png(written)
    assert np.array_equal(read, pixels)
    assert texts["key"] == text


def test_an_image_is_enlarged_to_the_requested_size(pool: ModelPool):
    """The record has the size at which it was generated."""
    encoded = generate(pool, GenerationParams("a cat", width=512, height=256, seed=1))
    assert Image.open(io.BytesIO(encoded.png)).size == (512, 256)
    assert encoded.is_enlarged
    assert (encoded.record.maker.drawn_width, encoded.record.maker.drawn_height) == (176, 96)
    assert "pillow" in encoded.record.maker.versions


def test_the_file_records_how_it_was_generated(pool: ModelPool):
    """Request, backend, versions and truncated prompts are in the text of the PNG file."""
    params = GenerationParams("cat " * 21 + "日本", negative_prompt="dog", seed=1)
    encoded = generate(pool, params)
    record = read_stored_image(encoded.png).record
    assert record == encoded.record
    assert (record.request.prompt, record.request.seed) == (params.prompt, 1)
    assert record.maker.cut_off == ["prompt"]
    assert record.maker.backend == "double"
    assert {"sd35", "numpy"} <= record.maker.versions.keys()


def test_a_replay_without_changes_gives_the_same_bytes(pool: ModelPool):
    """Even if the image was enlarged."""
    for params in (GenerationParams("a cat", seed=1), GenerationParams("a cat", seed=1, width=512, height=512)):
        verdict = replay(read_stored_image(generate(pool, params).png), pool)
        assert (verdict.outcome, verdict.changed) == ("same bytes", [])


def test_a_replay_lists_changed_versions_even_if_the_pixels_are_equal(pool: ModelPool):
    encoded = generate(pool, GenerationParams("a cat", seed=1))
    pixels, _ = read_png(encoded.png)
    maker = replace(encoded.record.maker, revision="0" * 64, versions={"numpy": "1.0"})
    stored_image = read_stored_image(write_png(pixels, replace(encoded.record, maker=maker).to_text()))
    verdict = replay(stored_image, pool)
    assert (verdict.outcome, verdict.max_difference) == ("same image", 0)
    assert any("revision: 000000000000 then" in change for change in verdict.changed)
    assert any("numpy: 1.0 then" in change for change in verdict.changed)


def test_images_with_and_without_skip_layer_guidance_are_replayed(pool: ModelPool):
    params = GenerationParams("a cat", model="large", seed=1, width=256, height=256, steps=10)
    files = [generate(pool, replace(params, skip_layer_scale=scale)).png for scale in (2.8, 0)]
    skipped, plain = (read_png(file)[0] for file in files)
    assert not np.array_equal(skipped, plain)
    for file, scale in zip(files, (2.8, 0), strict=True):
        assert read_stored_image(file).record.request.skip_layer_scale == scale
        assert replay(read_stored_image(file), pool).outcome == "same bytes"


def test_files_from_before_skip_layer_guidance_are_replayed(pool: ModelPool):
    """Their requests lack the scale, and keep their digest."""
    encoded = generate(pool, GenerationParams("a cat", seed=1))
    request = encoded.record.request
    old_request = (
        '{"guidance_scale":4.5,"height":128,"model":"mini","negative_prompt":"","profile":"double/float32",'
        f'"prompt":"a cat","revision":"{request.revision}","seed":1,"steps":4,"width":128}}'
    )
    pixels, text = read_png(encoded.png)
    text |= {REQUEST_KEY: old_request, DIGEST_KEY: hashlib.sha256(old_request.encode()).hexdigest()}
    stored_image = read_stored_image(write_png(pixels, text))
    assert stored_image.record.request == request
    assert stored_image.record.request.digest == text[DIGEST_KEY]
    assert replay(stored_image, pool).outcome == "same bytes"


@pytest.mark.parametrize(
    ("off_by", "share", "outcome"), [(2, 0.01, "same image"), (3, 0.01, "different"), (1, 1, "different")]
)
def test_replay_allows_two_of_255_at_a_pixel_and_a_tenth_on_average(
    pool: ModelPool, off_by: int, share: float, outcome: str
):
    encoded = generate(pool, GenerationParams("a cat", seed=1))
    pixels, _ = read_png(encoded.png)
    changed = pixels.copy()
    rows = max(1, round(len(changed) * share))
    changed[:rows] = np.where(changed[:rows] < 128, changed[:rows] + off_by, changed[:rows] - off_by)
    verdict = replay(read_stored_image(write_png(changed, encoded.record.to_text())), pool)
    assert (verdict.outcome, verdict.max_difference) == (outcome, off_by)


def test_a_replay_of_a_cropped_file_is_different(pool: ModelPool):
    """The first change listed is the size."""
    encoded = generate(pool, GenerationParams("a cat", seed=1))
    pixels, _ = read_png(encoded.png)
    verdict = replay(read_stored_image(write_png(pixels[:64], encoded.record.to_text())), pool)
    assert verdict.outcome == "different"
    assert verdict.changed[0] == "size: 128x64 in the file, 128x128 by its request"


def _foreign() -> bytes:
    out = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "steps: 20")
    Image.new("RGB", (16, 16)).save(out, "PNG", pnginfo=text)
    return out.getvalue()


def test_an_error_says_why_a_file_cannot_be_replayed(pool: ModelPool):
    """The file is not a PNG, damaged, of another program, or edited."""
    encoded = generate(pool, GenerationParams("a cat", seed=1))
    pixels, text = read_png(encoded.png)

    def edited(key: str, before: str, after: str) -> bytes:
        return write_png(pixels, {**text, key: text[key].replace(before, after)})

    for data, message in (
        (b"", "not a PNG"),
        (b"GIF89a", "not a PNG"),
        (encoded.png[:-2000], "its pixels cannot be read"),
        (_foreign(), "does not say how it was generated.*use the original PNG file"),
        (edited(REQUEST_KEY, "a cat", "a dog"), "edited"),
        (edited(MAKER_KEY, '"versions"', '"version"'), "damaged"),
        (edited(MAKER_KEY, "{", "["), "damaged"),
    ):
        with pytest.raises(NotReplayable, match=message):
            read_stored_image(data)
