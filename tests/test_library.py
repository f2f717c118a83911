"""The Python library: `from sd35 import Generator`."""

import gc
import io
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict, get_type_hints
from unittest.mock import Mock

import numpy as np
import PIL.Image
import pytest

import sd35
import sd35.generator
from sd35 import Generator, Image, ImageParams, InvalidRequest, InvalidSetting, UnknownModel
from sd35.checkpoints.open import open_checkpoint
from sd35.checkpoints.registry import EMBEDDED
from sd35.engine.local.preview import PreviewMap
from sd35.generation.params import GenerationParams
from sd35.generation.replay import read_stored_image
from sd35.images.texts import format_of, read_record
from tests.support.fake_backend import WAIT_S, FakeBackend, Fault, fake_pool

ROOT = Path(__file__).parents[1]


class Size(TypedDict):
    """The parameters that determine the work of an image."""

    width: int
    height: int
    steps: int


SMALL: Size = {"width": 64, "height": 64, "steps": 2}
LONG: Size = {"width": 256, "height": 256, "steps": 150}  # too long to finish in a test


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    """A generator with the embedded model."""
    with Generator("sd35-mini") as generator:
        yield generator


@pytest.fixture(scope="module")
def image(generator: Generator) -> Image:
    """A small image."""
    return generator.generate("a cat", seed=7, **SMALL)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: FakeBackend) -> Iterator[Generator]:
    """A generator with the fake backend."""
    monkeypatch.setattr(sd35.generator, "open_model_pool", lambda *_: fake_pool(tmp_path, backend, max_in_flight=99))
    with Generator() as generator:
        yield generator
        backend.release.set()


def test_all_lists_the_public_names():
    """Each name in `__all__` can be imported, and `dir` lists it."""
    assert sd35.__all__ == [
        "BackendUnavailable",
        "CheckpointError",
        "DoesNotFit",
        "DownloadFailed",
        "GenerationFailed",
        "Generator",
        "Image",
        "ImageParams",
        "InvalidRequest",
        "InvalidSetting",
        "NotCompiled",
        "NumericalFailure",
        "Overloaded",
        "Sd35Error",
        "UnknownModel",
    ]
    assert all(getattr(sd35, name).__name__ == name for name in sd35.__all__)
    assert set(sd35.__all__) <= set(dir(sd35))
    with pytest.raises(AttributeError, match="module 'sd35' has no attribute 'Painter'"):
        sd35.Painter  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_no_heavy_library():
    """`import sd35` loads neither NumPy nor a runtime, so `sd35 --help` starts quickly."""
    code = "import sys, sd35; sd35.Sd35Error; print({'numpy', 'onnxruntime', 'pydantic', 'PIL'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_parameters_are_those_of_the_http_api():
    """`ImageParams` has the fields of GenerationParams except the prompt, with the same types."""
    hints = get_type_hints(GenerationParams)
    names = [field.name for field in fields(GenerationParams) if field.name != "prompt"]
    assert get_type_hints(ImageParams) == {name: hints[name] for name in names}


def test_an_image_has_its_request(image: Image):
    """With the given seed and size, and with defaults for the rest. The pixels are 8-bit RGB."""
    assert (image.width, image.height, image.seed, image.request.steps) == (64, 64, 7, 2)
    assert (image.request.prompt, image.request.guidance_scale > 0) == ("a cat", True)
    assert image.digest == image.request.digest
    assert (image.pixels.shape, image.pixels.dtype) == ((64, 64, 3), np.uint8)
    assert repr(image) == "<sd35.Image 64x64, seed 7, model sd35-mini>"


def test_an_enlarged_image_has_the_requested_size(generator: Generator):
    """The record has the size at which it was generated."""
    image = generator.generate("a cat", width=1024, height=512, steps=1)
    assert (image.width, image.height, image.pixels.shape) == (1024, 512, (512, 1024, 3))
    assert image.record.maker.drawn_width < 1024


def test_the_png_file_has_the_record_and_can_be_generated_again(generator: Generator, image: Image):
    assert read_stored_image(image.png).record == image.record
    assert generator.generate("a cat", seed=7, **SMALL).png == image.png


def test_an_image_converts_to_pillow_and_shows_in_notebooks(image: Image):
    shown = PIL.Image.open(io.BytesIO(image._repr_png_()))
    for each in (image.to_pil(), shown):
        assert (each.mode, np.array_equal(np.asarray(each), image.pixels)) == ("RGB", True)


@pytest.mark.parametrize(
    ("name", "image_format"),
    [("a.png", "png"), ("a.JPG", "jpeg"), ("a.jpeg", "jpeg"), ("a.webp", "webp"), ("a.avif", "avif")],
)
def test_the_suffix_selects_the_format_of_a_saved_file(image: Image, tmp_path: Path, name: str, image_format: str):
    """Every format has the record."""
    image.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert (format_of(content), read_record(content).request) == (image_format, image.request)


def test_a_file_can_be_saved_without_the_record_and_with_lower_quality(image: Image, tmp_path: Path):
    image.save(str(tmp_path / "a.png"), metadata=False)
    assert b"a cat" not in (tmp_path / "a.png").read_bytes()
    for quality in (20, 90):
        image.save(tmp_path / f"{quality}.jpg", quality=quality)
    assert (tmp_path / "20.jpg").stat().st_size < (tmp_path / "90.jpg").stat().st_size


@pytest.mark.parametrize("name", ["a.gif", "png", "a"])
def test_an_unknown_suffix_is_refused(image: Image, tmp_path: Path, name: str):
    """The error lists the suffixes, and no file is written."""
    with pytest.raises(InvalidRequest, match=r"path: got '.*'; allowed: a file name that ends in \.png, \.jpeg, "):
        image.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"width": 65}, "width: got 65; allowed: positive multiples of 16"),
        ({"steps": 0}, "steps: got 0; allowed: 1 to 150"),
        ({"steps": 2.5}, r"steps: got 2\.5; allowed: a valid integer"),
        ({"seed": -1}, "seed: got -1; allowed: 0 to 4294967295"),
        ({"seed": 2**32}, "seed: got 4294967296; allowed: 0 to 4294967295"),
        ({"guidance_scale": float("nan")}, "guidance_scale: got nan"),
        ({"skip_layer_scale": 1}, "skip_layer_scale: got 1"),
        ({"negative_prompt": None}, "negative_prompt: got None; allowed: a valid string"),
        ({"prompt": ""}, "prompt: got '0 characters'"),
        ({"prompt": 7}, "prompt: got 7; allowed: a valid string"),
    ],
)
def test_bad_parameters_are_refused(generator: Generator, params: dict[str, Any], message: str):
    """With the error of the HTTP API."""
    with pytest.raises(InvalidRequest, match=message):
        generator.generate(**{"prompt": "a cat", **params})


def test_an_unknown_parameter_and_an_unknown_model_are_refused(generator: Generator):
    with pytest.raises(TypeError, match="unexpected keyword argument 'sede'"):
        generator.generate("a cat", sede=7)  # type: ignore[call-arg]
    with pytest.raises(UnknownModel, match="model: got 'other'; allowed: sd35-mini"):
        generator.generate("a cat", model="other")


def test_parameters_can_be_numpy_integers(generator: Generator, image: Image):
    size: Any = np.int64(64)
    assert generator.generate("a cat", seed=np.uint32(7), width=size, height=size, steps=2).png == image.png  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_pixels": 1}, "^max_pixels: got 1; "),
        ({"precision": "fp4"}, "^precision: got 'fp4'; allowed: auto, "),
        ({"bakend": "onnx"}, "unknown settings: got 'bakend'; allowed: allowed_hosts, backend, "),
        ({"checkpoints": ["sd35-mini"]}, "unknown settings: got 'checkpoints'"),
        ({"backend": "caffe"}, "caffe"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str):
    """With the error of the command line, and the name of the argument instead of the flag."""
    with pytest.raises(InvalidSetting, match=message):
        Generator(**settings)


def test_a_generator_accepts_the_settings_of_the_service(generator: Generator):
    """Such as `max_pixels`, which limits the size."""
    with Generator(["sd35-mini"], max_pixels=128 * 128, backend="onnx", threads=1) as small:
        assert small.generate("a cat", width=128, height=128, steps=1).width == 128
        with pytest.raises(InvalidRequest, match="width: got 256; allowed: at most 16384 pixels in total"):
            small.generate("a cat", width=256, height=256)
    assert generator.generate("a cat", width=256, height=256, steps=1).width == 256


def test_a_generator_holds_several_checkpoints(tmp_path: Path):
    """By name or directory. The first is the default."""
    shutil.copytree(open_checkpoint(EMBEDDED).directory, tmp_path / "other")
    with Generator(["sd35-mini", tmp_path / "other"]) as both:
        assert both.generate("a cat", **SMALL).request.model == "sd35-mini"
        assert both.generate("a cat", model="other", **SMALL).request.model == "other"
    with Generator(tmp_path / "other") as other:
        assert other.generate("a cat", **SMALL).request.model == "other"


def test_settings_also_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    """Except the checkpoint and the limits of a server's queue. Arguments override the environment."""
    for name, value in {"CHECKPOINTS": "none", "MAX_IN_FLIGHT": "1", "MAX_PIXELS": "4096"}.items():
        monkeypatch.setenv(f"SD35_{name}", value)
    with Generator() as small:
        assert len(small.generate_many("a cat", count=3, **SMALL)) == 3
        with pytest.raises(InvalidRequest, match="at most 4096 pixels in total"):
            small.generate("a cat", width=128)
    with Generator(max_pixels=128 * 128, max_in_flight=1) as larger:
        assert larger.generate("a cat", steps=1).width == 128
        with pytest.raises(sd35.Overloaded, match="1 of at most 1 images are waiting or running"):
            larger.generate_many("a cat", count=2, **LONG | {"width": 128, "height": 128})


def test_several_images_have_consecutive_seeds(generator: Generator):
    """For each prompt. The seed 4294967295 is followed by 0. `generate` gives the same image for the same seed."""
    images = generator.generate_many(["a cat", "a dog"], count=2, seed=2**32 - 1, **SMALL)
    assert [(each.request.prompt, each.seed) for each in images] == [
        ("a cat", 2**32 - 1),
        ("a cat", 0),
        ("a dog", 2**32 - 1),
        ("a dog", 0),
    ]
    alone = generator.generate("a dog", seed=0, **SMALL)
    assert np.abs(alone.pixels.astype(int) - images[3].pixels).max() <= 2


def test_generate_many_accepts_one_prompt_and_draws_a_random_seed(generator: Generator):
    first, second = generator.generate_many("a cat", count=2, **SMALL)
    assert (first.request.prompt, second.seed) == ("a cat", (first.seed + 1) % 2**32)
    assert generator.generate_many([]) == []
    with pytest.raises(InvalidRequest, match="count: got 0; allowed: 1 or more"):
        generator.generate_many("a cat", count=0)


def test_images_of_one_call_share_batches(fake: Generator, backend: FakeBackend):
    """All are submitted before the call waits for the first."""
    images = fake.generate_many("a cat", count=20, seed=1, **SMALL | {"steps": 100})
    assert len({each.digest for each in images}) == 20
    assert max(backend.rows) > 1


def test_more_images_than_a_server_accepts_are_generated(generator: Generator):
    """The limit of images in flight does not apply."""
    assert len(generator.generate_many("a cat", count=30, width=64, height=64, steps=1)) == 30


def test_progress_is_reported_after_each_step(generator: Generator):
    """For several images, as the sums of their steps."""
    reports: list[tuple[int, int]] = []
    generator.generate("a cat", on_progress=lambda *report: reports.append(report), **SMALL | {"steps": 3})
    assert reports == [(1, 3), (2, 3), (3, 3)]
    reports.clear()
    generator.generate_many(["a cat", "a dog"], on_progress=lambda *report: reports.append(report), **SMALL)
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {type(number) for report in reports for number in report} == {int}


def test_an_exception_of_the_progress_callback_does_not_end_the_image(
    generator: Generator, image: Image, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    """The exception is logged by `logging`, and nothing is printed."""

    def fail(step: int, steps: int) -> None:
        raise ValueError(f"{step} of {steps}")

    assert generator.generate("a cat", seed=7, on_progress=fail, **SMALL).png == image.png
    assert [str(each.exc_info[1]) for each in caplog.records if each.exc_info] == ["1 of 2", "2 of 2"]
    assert capsys.readouterr() == ("", "")


def test_the_engine_logs_to_logging(
    fake: Generator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    """The library prints nothing, because standard output belongs to the program."""
    monkeypatch.setattr(PreviewMap, "learn", Mock(side_effect=ValueError("no colours")))
    fake.generate("a cat", **SMALL)
    fake.close()
    assert "an image could not improve the previews" in caplog.text
    assert "no colours" in caplog.text
    assert capsys.readouterr() == ("", "")


def test_images_of_several_threads_share_batches(fake: Generator, backend: FakeBackend):
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(fake.generate, "a cat", seed=seed, **SMALL | {"steps": 150}) for seed in range(4)]
        assert [future.result().seed for future in futures] == [0, 1, 2, 3]
    assert max(backend.rows) > 1


def test_a_failed_image_cancels_the_others(fake: Generator, backend: FakeBackend):
    """Its error is raised. The generator can be used again."""
    backend.faults["a dog"] = Fault.STEP_ERROR
    with pytest.raises(sd35.GenerationFailed, match="the runtime's own words"):
        fake.generate_many(["a dog", "a cat"], **LONG)
    assert fake.generate("a cat", **SMALL).width == 64
    assert backend.steps.count("a cat") < LONG["steps"]


def test_ctrl_c_cancels_the_images(generator: Generator):
    """KeyboardInterrupt is raised at once. The generator can be used again."""
    steps: list[int] = []

    def interrupt(step: int, _: int) -> None:
        steps.append(step)
        if step == 2:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        generator.generate_many("a cat", on_progress=interrupt, **LONG)
    after = len(steps)
    generator.generate("a dog", **LONG | {"steps": 5})
    assert len(steps) <= after + 1 < 150  # the step that was running


def test_a_closed_generator_refuses_images():
    """Closing it twice does nothing."""
    generator = Generator()
    assert generator.generate("a cat", **SMALL).width == 64
    generator.close()
    generator.close()
    with pytest.raises(RuntimeError, match=r"^the generator is closed; create a new one$"):
        generator.generate("a cat")


def test_closing_cancels_images_of_other_threads():
    """They get the error of a closed generator."""
    generator, started = Generator(), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(generator.generate, "a cat", on_progress=lambda *_: started.set(), **LONG)
        assert started.wait(WAIT_S)
        generator.close()
        with pytest.raises(RuntimeError, match=r"^the generator is closed; create a new one$"):
            future.result(WAIT_S)


def test_a_deleted_generator_ends_its_threads():
    """Even without `close`."""
    before = set(threading.enumerate())
    generator = Generator()
    own = set(threading.enumerate()) - before
    assert own
    del generator
    gc.collect()
    assert not any(thread.is_alive() for thread in own)


def test_the_example_has_the_readmes_lines_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (block,) = re.findall(
        r"^```python\n(from sd35 import .*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    example = ROOT / "examples" / "python.py"
    assert block in example.read_text()
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example))
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [f"image-{number}.png" for number in range(1, 5)]
    for name in ["cat.png", *names]:
        read_stored_image((tmp_path / name).read_bytes())
