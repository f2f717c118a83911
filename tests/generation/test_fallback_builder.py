"""A fallback serves while child processes build, and is then swapped. No image in flight is lost or changed."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sd35.engine.base import DeviceLimits, GeneratedImage, Pixels
from sd35.engine.local.engine import LocalEngine
from sd35.engine.local.prompt_cache import EmbeddingCache
from sd35.engine.model_info import ModelInfo
from sd35.errors import GenerationFailed, NotCompiled, Overloaded
from sd35.generation import fallback
from sd35.generation.fallback import FallbackBuilder, command_of
from sd35.generation.params import GenerationParams
from sd35.settings import load_settings
from tests.support.fake_backend import MINI, WAIT_S, FakeBackend, fake_pipeline, pool_of

FALLBACK, BUILT = "double/float32", "double/float16"


LIMITS = DeviceLimits(8, 100, 600, 10**9)


class FallbackCase:
    """A model pool whose fallback serves while child processes build a file for each name in `missing`."""

    def __init__(self, directory: Path, *missing: str) -> None:
        self.directory, self.missing = directory, missing
        self.fallback, self.built = FakeBackend(), FakeBackend("float16")
        first, self.pipeline = (fake_pipeline(directory / "mini", MINI, each) for each in (self.fallback, self.built))
        self.model = self.pipeline.info
        self.engine = LocalEngine([first], LIMITS, EmbeddingCache(10**6))
        self.pool = pool_of(self.engine)

    def fallback_builder(self, source: str, swap: Callable[[ModelInfo], None] | None = None) -> FallbackBuilder:
        """Return a builder whose child process runs the Python code `source` with the file to build as its argument."""

        def command(arguments: Sequence[str]) -> list[str]:
            return [sys.executable, "-c", source, str(self.directory / arguments[-1])]

        pending = [self.pipeline.checkpoint]
        self.pool.fallback_builder = FallbackBuilder(pending, command, self.open_model, swap or self.pool.swap)
        return self.pool.fallback_builder

    def open_model(self, _: object) -> ModelInfo:
        """Open the model if all files are built."""
        for name in self.missing:
            if not (self.directory / name).exists():
                raise NotCompiled(f"{name} is", ["compile", name])
        self.engine.add(self.pipeline)
        return self.model

    def swap(self) -> None:
        """Open the built model, and use it for new requests."""
        self.engine.add(self.pipeline)
        self.pool.swap(self.model)

    def generate(self, prompt: str = "a cat", seed: int = 1, steps: int = 4) -> GeneratedImage:
        """Generate an image with the current model."""
        return self.pool.submit(self.pool.resolve(GenerationParams(prompt, seed=seed, steps=steps))).future.result(
            WAIT_S
        )


BUILD = "import sys, pathlib; print('building'); pathlib.Path(sys.argv[1]).touch()"


@pytest.fixture
def case(tmp_path: Path) -> Iterator[FallbackCase]:
    """A pool whose graphs and engines are missing."""
    case = FallbackCase(tmp_path, "graphs", "engines")
    with case.pool:
        yield case
        for backend in (case.fallback, case.built):
            backend.release.set()


def run_to_the_end(fallback_builder: FallbackBuilder) -> None:
    """Start a builder and wait for its end."""
    fallback_builder.start()
    fallback_builder._thread.join(WAIT_S)  # noqa: SLF001  it has no public way to wait
    assert not fallback_builder.is_running


def test_missing_graphs_and_engines_are_built_and_then_serve_new_requests(case: FallbackCase):
    """One child process builds the graphs, then another the engines. Their output is logged."""
    assert case.generate().request.profile == FALLBACK
    with structlog.testing.capture_logs() as logs:
        run_to_the_end(case.fallback_builder(BUILD))
    assert [line["command"] for line in logs if "command" in line] == ["sd35 compile graphs", "sd35 compile engines"]
    assert [line["output"] for line in logs if "output" in line] == ["building"] * 2
    assert logs[-1]["event"] == "the built model replaced its fallback"
    assert case.generate().request.profile == BUILT
    assert case.pool.models["mini"] is case.model
    assert case.built.steps[0] == " "  # the first image, before those of requests


def test_an_image_in_flight_during_the_swap_ends_on_the_fallback(case: FallbackCase):
    """Its pixels are unchanged, while a new request of the same prompt uses the built model."""
    expected = case.generate("a cat")
    case.fallback.hold()
    request = case.pool.resolve(GenerationParams("a cat", seed=1, steps=4))
    before = case.pool.submit(request)
    resolved = case.pool.resolve(GenerationParams("a dog", seed=1))
    assert case.fallback.started.wait(WAIT_S)
    swapping = threading.Thread(target=case.swap)
    swapping.start()
    case.fallback.release.set()
    swapping.join(WAIT_S)
    after, late = case.generate("a cat"), case.pool.submit(resolved)
    assert np.array_equal(before.future.result(WAIT_S).pixels, expected.pixels)
    assert before.future.result().request == request
    assert late.future.result(WAIT_S).request.profile == FALLBACK  # resolved before the swap, submitted after it
    assert after.request.profile == BUILT
    assert not np.array_equal(after.pixels, expected.pixels)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(1, 6), min_size=1, max_size=12), swap_at=st.integers(0, 12))
def test_no_request_is_lost_or_changed_by_a_swap(tmp_path: Path, steps: list[int], swap_at: int):
    """Each image has the pixels of a pool that has only the profile of its request."""
    case = FallbackCase(tmp_path)
    prompts = [f"cat {number}" for number in range(len(steps))]
    with case.pool as pool:
        swapping = threading.Thread(target=case.swap)
        handles = []
        for number, (prompt, count) in enumerate(zip(prompts, steps, strict=True)):
            if number == swap_at:
                swapping.start()
            request = pool.resolve(GenerationParams(prompt, seed=number, steps=count))
            handles.append((request, pool.submit(request)))
        generated = [(request, handle.future.result(WAIT_S)) for request, handle in handles]
        if swapping.ident:
            swapping.join(WAIT_S)
        for request, image in generated:
            assert image.request == request
            backend = FakeBackend("float32" if request.profile == FALLBACK else "float16")
            assert np.array_equal(
                image.pixels, generate_alone(tmp_path, backend, request.prompt, request.seed, request.steps)
            )


def generate_alone(directory: Path, backend: FakeBackend, prompt: str, seed: int, steps: int) -> Pixels:
    """Generate an image in a pool with one backend."""
    backend.release.set()
    engine = LocalEngine([fake_pipeline(directory / "mini", MINI, backend)], LIMITS, EmbeddingCache(10**6))
    with pool_of(engine) as pool:
        request = pool.resolve(GenerationParams(prompt, seed=seed, steps=steps))
        return pool.submit(request).future.result(WAIT_S).pixels


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import sys; print('no such GPU'); sys.exit(3)",
            "`sd35 compile graphs` exited with code 3; its last output: no such GPU",
        ),
        ("pass", "the build succeeded, but files are still missing: graphs is not built yet"),
    ],
)
def test_the_fallback_keeps_serving_after_a_failed_build(case: FallbackCase, source: str, message: str):
    """The log has the output of the child process."""
    with structlog.testing.capture_logs() as logs:
        fallback_builder = case.fallback_builder(source)
        run_to_the_end(fallback_builder)
    assert fallback_builder.failures == 1
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["error"].startswith(message)
    assert case.generate().request.profile == FALLBACK


def test_a_model_is_not_swapped_in_if_its_first_image_fails(case: FallbackCase, monkeypatch: pytest.MonkeyPatch):
    """Even if the fallback could retry that image."""
    monkeypatch.setattr(case.built, "decode_latents", lambda _: (_ for _ in ()).throw(FloatingPointError()))
    with pytest.raises(GenerationFailed, match="the first image of mini in double/float16 had a numerical failure"):
        case.swap()
    assert case.generate().request.profile == FALLBACK


def test_the_swap_waits_until_the_engine_has_room(case: FallbackCase):
    """The engine refuses the model's first image twice."""
    refusals = iter([Overloaded("full", 0), Overloaded("full", 0)])

    def swap(model: ModelInfo) -> None:
        if refused := next(refusals, None):
            refused.retry_after_s = 0
            raise refused
        case.pool.swap(model)

    fallback_builder = case.fallback_builder(BUILD, swap)
    run_to_the_end(fallback_builder)
    assert fallback_builder.failures == 0
    assert case.generate().request.profile == BUILT


@pytest.mark.parametrize("ignores", [False, True], ids=["by SIGTERM", "by SIGKILL"])
def test_stopping_terminates_the_child_process(case: FallbackCase, monkeypatch: pytest.MonkeyPatch, ignores: bool):  # noqa: FBT001
    """It is killed if it ignores SIGTERM. This does not count as a failure."""
    monkeypatch.setattr(fallback, "_TERMINATE_S", 0.2 if ignores else WAIT_S)
    os.mkfifo(case.directory / "pid")
    source = "import os, pathlib, signal, sys\n"
    source += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" * ignores
    source += "pathlib.Path(sys.argv[1]).with_name('pid').write_text(str(os.getpid()))\nwhile True: signal.pause()"
    builder = case.fallback_builder(source)
    builder.start()
    child = int((case.directory / "pid").read_text())
    assert builder.is_running
    builder.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    builder._thread.join(WAIT_S)  # noqa: SLF001
    assert (builder.is_running, builder.failures) == (False, 0)


def test_no_child_process_is_started_after_stopping(case: FallbackCase):
    """The service may close just before the builder starts a child process."""
    builder = case.fallback_builder(BUILD)
    builder.stop()
    run_to_the_end(builder)
    assert not (case.directory / "graphs").exists()
    assert builder.failures == 0


def test_a_child_process_gets_the_files_and_the_device_of_the_settings():
    """All flags that the command reads are on its command line, and `sd35 compile` accepts them."""
    from sd35.cli.main import load_command

    flags = {
        "cache_dir": "/c",
        "weights": "a.safetensors,b.safetensors",
        "registry": "/v.toml",
        "base_checkpoint": "one",
    }
    line = command_of(load_settings({**flags, "offline": True, "device": "cuda:1", "threads": 2}), ["compile"])
    arguments = line[line.index("compile") + 1 :]
    given = load_command("compile").make_context("compile", arguments).params
    assert {name: value for name, value in given.items() if value and name not in ("graph_precision", "target")} == {
        "cache_dir": "/c",
        "weights": ["a.safetensors", "b.safetensors"],
        "registry": "/v.toml",
        "base_checkpoint": "one",
        "offline": True,
        "device": "cuda:1",
        "threads": "2",
        "sensitivity": True,
    }
