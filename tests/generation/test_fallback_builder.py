"""A fallback answers while children build, and the swap: nothing in flight is lost or changed, whatever goes wrong."""

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
    """A model pool in which a fallback answers, and what a child is to build for it: a file for each of `lacking`."""

    def __init__(self, directory: Path, *lacking: str) -> None:
        self.directory, self.lacking = directory, lacking
        self.fallback, self.built = FakeBackend(), FakeBackend("float16")
        first, self.pipeline = (fake_pipeline(directory / "mini", MINI, each) for each in (self.fallback, self.built))
        self.model = self.pipeline.info
        self.engine = LocalEngine([first], LIMITS, EmbeddingCache(10**6))
        self.pool = pool_of(self.engine)

    def fallback_builder(self, source: str, swap: Callable[[ModelInfo], None] | None = None) -> FallbackBuilder:
        """Builds with a child that runs Python of this source, with what it is to build as its argument."""

        def command(arguments: Sequence[str]) -> list[str]:
            return [sys.executable, "-c", source, str(self.directory / arguments[-1])]

        pending = [self.pipeline.checkpoint]
        self.pool.fallback_builder = FallbackBuilder(pending, command, self.open_model, swap or self.pool.swap)
        return self.pool.fallback_builder

    def open_model(self, _: object) -> ModelInfo:
        """The model, once all is there."""
        for name in self.lacking:
            if not (self.directory / name).exists():
                raise NotCompiled(f"{name} is", ["compile", name])
        self.engine.add(self.pipeline)
        return self.model

    def swap(self) -> None:
        """Open the built model, and answer new requests with it."""
        self.engine.add(self.pipeline)
        self.pool.swap(self.model)

    def ask(self, prompt: str = "a cat", seed: int = 1, steps: int = 4) -> GeneratedImage:
        """An image, as it is made now."""
        return self.pool.submit(self.pool.resolve(GenerationParams(prompt, seed=seed, steps=steps))).future.result(
            WAIT_S
        )


BUILD = "import sys, pathlib; print('at work'); pathlib.Path(sys.argv[1]).touch()"


@pytest.fixture
def case(tmp_path: Path) -> Iterator[FallbackCase]:
    """Graphs and engines are lacking."""
    case = FallbackCase(tmp_path, "graphs", "engines")
    with case.pool:
        yield case
        for backend in (case.fallback, case.built):
            backend.release.set()


def finish(fallback_builder: FallbackBuilder) -> None:
    """Run it to its end."""
    fallback_builder.start()
    fallback_builder._thread.join(WAIT_S)  # noqa: SLF001  which ends by itself, and says so to no one
    assert not fallback_builder.is_running


def test_missing_graphs_and_engines_are_built_and_then_used(case: FallbackCase):
    """Graphs, then engines, each by one child whose lines are logged; then new requests are the built model's."""
    assert case.ask().request.profile == FALLBACK
    with structlog.testing.capture_logs() as logs:
        finish(case.fallback_builder(BUILD))
    assert [line["command"] for line in logs if "command" in line] == ["sd35 compile graphs", "sd35 compile engines"]
    assert [line["output"] for line in logs if "output" in line] == ["at work"] * 2
    assert logs[-1]["event"] == "swapped"
    assert case.ask().request.profile == BUILT
    assert case.pool.models["mini"] is case.model
    assert case.built.steps[0] == " "  # its first image came before any request's


def test_an_image_in_flight_during_the_swap_ends_on_the_fallback(case: FallbackCase):
    """It ends on the fallback with the pixels it would have had, beside a new one of the same prompt on the other."""
    expected = case.ask("a cat")
    case.fallback.hold()
    request = case.pool.resolve(GenerationParams("a cat", seed=1, steps=4))
    before = case.pool.submit(request)
    resolved = case.pool.resolve(GenerationParams("a dog", seed=1))
    assert case.fallback.started.wait(WAIT_S)
    swapping = threading.Thread(target=case.swap)
    swapping.start()
    case.fallback.release.set()
    swapping.join(WAIT_S)
    after, late = case.ask("a cat"), case.pool.submit(resolved)
    assert np.array_equal(before.future.result(WAIT_S).pixels, expected.pixels)
    assert before.future.result().request == request
    assert late.future.result(WAIT_S).request.profile == FALLBACK  # resolved before, submitted after
    assert after.request.profile == BUILT
    assert not np.array_equal(after.pixels, expected.pixels)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(1, 6), min_size=1, max_size=12), moment=st.integers(0, 12))
def test_no_request_is_lost_or_changed_by_a_swap(tmp_path: Path, steps: list[int], moment: int):
    """Whenever it comes, each request ends with its own profile and the pixels of a pool that has only that profile."""
    case = FallbackCase(tmp_path)
    prompts = [f"cat {number}" for number in range(len(steps))]
    with case.pool as pool:
        swapping = threading.Thread(target=case.swap)
        handles = []
        for number, (prompt, count) in enumerate(zip(prompts, steps, strict=True)):
            if number == moment:
                swapping.start()
            request = pool.resolve(GenerationParams(prompt, seed=number, steps=count))
            handles.append((request, pool.submit(request)))
        generated = [(request, handle.future.result(WAIT_S)) for request, handle in handles]
        if swapping.ident:
            swapping.join(WAIT_S)
        for request, got in generated:
            assert got.request == request
            backend = FakeBackend("float32" if request.profile == FALLBACK else "float16")
            assert np.array_equal(got.pixels, alone(tmp_path, backend, request.prompt, request.seed, request.steps))


def alone(directory: Path, backend: FakeBackend, prompt: str, seed: int, steps: int) -> Pixels:
    """The image of a model pool that knows one backend."""
    backend.release.set()
    engine = LocalEngine([fake_pipeline(directory / "mini", MINI, backend)], LIMITS, EmbeddingCache(10**6))
    with pool_of(engine) as pool:
        request = pool.resolve(GenerationParams(prompt, seed=seed, steps=steps))
        return pool.submit(request).future.result(WAIT_S).pixels


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import sys; print('no such GPU'); sys.exit(3)", "sd35 compile graphs ended with 3: no such GPU"),
        ("pass", "the build did not produce the missing files: graphs is not built yet"),
    ],
)
def test_the_fallback_keeps_answering_after_a_failed_build(case: FallbackCase, source: str, why: str):
    """What the child said is in the log, and nothing else changes."""
    with structlog.testing.capture_logs() as logs:
        fallback_builder = case.fallback_builder(source)
        finish(fallback_builder)
    assert fallback_builder.failures == 1
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["error"].startswith(why)
    assert case.ask().request.profile == FALLBACK


def test_a_model_whose_first_image_fails_is_not_swapped_in(case: FallbackCase, monkeypatch: pytest.MonkeyPatch):
    """Not even where the fallback could make it again."""
    monkeypatch.setattr(case.built, "decode_latents", lambda _: (_ for _ in ()).throw(FloatingPointError()))
    with pytest.raises(GenerationFailed, match="the first image of mini in double/float16 had a numerical failure"):
        case.swap()
    assert case.ask().request.profile == FALLBACK


def test_the_swap_waits_until_the_engine_has_room(case: FallbackCase):
    """Where there is no room for the first image it is tried again, and what is in flight is not disturbed."""
    refusals = iter([Overloaded("full", 0), Overloaded("full", 0)])

    def swap(model: ModelInfo) -> None:
        if refused := next(refusals, None):
            refused.retry_after_s = 0
            raise refused
        case.pool.swap(model)

    fallback_builder = case.fallback_builder(BUILD, swap)
    finish(fallback_builder)
    assert fallback_builder.failures == 0
    assert case.ask().request.profile == BUILT


@pytest.mark.parametrize("ignores", [False, True], ids=["at once", "when it is killed"])
def test_stopping_terminates_the_child_process(case: FallbackCase, monkeypatch: pytest.MonkeyPatch, ignores: bool):  # noqa: FBT001
    """And is no failure; a child that does not end when it is told to is killed."""
    monkeypatch.setattr(fallback, "_TERMINATE_S", 0.2 if ignores else WAIT_S)
    os.mkfifo(case.directory / "pid")
    source = "import os, pathlib, signal, sys\n"
    source += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" * ignores
    source += "pathlib.Path(sys.argv[1]).with_name('pid').write_text(str(os.getpid()))\nwhile True: signal.pause()"
    builds = case.fallback_builder(source)
    builds.start()
    child = int((case.directory / "pid").read_text())
    assert builds.is_running
    builds.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    builds._thread.join(WAIT_S)  # noqa: SLF001
    assert (builds.is_running, builds.failures) == (False, 0)


def test_no_child_process_is_started_after_stopping(case: FallbackCase):
    """No child outlives a service that closes just when one was to start."""
    builds = case.fallback_builder(BUILD)
    builds.stop()
    finish(builds)
    assert not (case.directory / "graphs").exists()
    assert builds.failures == 0


def test_a_child_builds_from_the_same_files_on_the_same_device():
    """Whatever flags, environment or file said: all that the command reads is on its line, which it understands."""
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
