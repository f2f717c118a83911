"""A standby answers while children build, and the swap: nothing in flight is lost or changed, whatever goes wrong."""

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

from sd35.engine.generation import Painted, Pixels
from sd35.engine.prompt_cache import EmbeddingCache
from sd35.engine.scheduler import Limits
from sd35.errors import NotCompiled, Overloaded, PictureFailed
from sd35.generation import fallback
from sd35.generation.fallback import Building, command_of
from sd35.generation.model import Model
from sd35.generation.model_pool import Studio
from sd35.generation.params import Wanted
from sd35.settings import load_settings
from tests.support.fake_backend import MINI, WAIT_S, NumpyBackend, double_model

STANDBY, BUILT = "double/float32", "double/float16"


class Shop:
    """A studio in which a standby answers, and what a child is to build for it: a file for each of `lacking`."""

    def __init__(self, directory: Path, *lacking: str) -> None:
        self.directory, self.lacking = directory, lacking
        self.standby, self.built = NumpyBackend(), NumpyBackend("float16")
        models = [double_model(directory / "mini", MINI, each) for each in (self.standby, self.built)]
        self.model, self.swapped = models[1], threading.Event()
        self.studio = Studio(models[:1], 1024 * 1024, Limits(8, 100, 600, 10**9), EmbeddingCache(10**6))

    def building(self, source: str, swap: Callable[[Model], None] | None = None) -> Building:
        """Builds with a child that runs Python of this source, with what it is to build as its argument."""

        def command(arguments: Sequence[str]) -> list[str]:
            return [sys.executable, "-c", source, str(self.directory / arguments[-1])]

        pending = [self.model.checkpoint]
        self.studio.building = Building(pending, command, self.open_model, swap or self.studio.swap)
        return self.studio.building

    def open_model(self, _: object) -> Model:
        """The model, once all is there."""
        for name in self.lacking:
            if not (self.directory / name).exists():
                raise NotCompiled(f"{name} is", ["compile", name])
        return self.model

    def ask(self, prompt: str = "a cat", seed: int = 1, steps: int = 4) -> Painted:
        """A picture, as it is made now."""
        return self.studio.submit(self.studio.resolve(Wanted(prompt, seed=seed, steps=steps))).future.result(WAIT_S)


BUILD = "import sys, pathlib; print('at work'); pathlib.Path(sys.argv[1]).touch()"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Graphs and engines are lacking."""
    shop = Shop(tmp_path, "graphs", "engines")
    with shop.studio:
        yield shop
        for backend in (shop.standby, shop.built):
            backend.release.set()


def finish(building: Building) -> None:
    """Run it to its end."""
    building.start()
    building._thread.join(WAIT_S)  # noqa: SLF001  which ends by itself, and says so to no one
    assert not building.is_running


def test_what_is_lacking_is_built_in_turn_and_then_answers(shop: Shop):
    """Graphs, then engines, each by one child whose lines are logged; then new requests are the built model's."""
    assert shop.ask().request.profile == STANDBY
    with structlog.testing.capture_logs() as logs:
        finish(shop.building(BUILD))
    assert [line["command"] for line in logs if "command" in line] == ["sd35 compile graphs", "sd35 compile engines"]
    assert [line["said"] for line in logs if "said" in line] == ["at work"] * 2
    assert logs[-1]["event"] == "swapped"
    assert shop.ask().request.profile == BUILT
    assert shop.studio.models["mini"] is shop.model
    assert shop.built.steps[0] == " "  # its first picture came before any request's


def test_a_picture_in_flight_at_the_swap_stays_what_it_is(shop: Shop):
    """It ends on the standby with the pixels it would have had, beside a new one of the same prompt on the other."""
    shop.standby.release.set()
    expected = shop.ask("held cat")
    shop.standby.release.clear()
    shop.standby.started.clear()
    request = shop.studio.resolve(Wanted("held cat", seed=1, steps=4))
    before = shop.studio.submit(request)
    resolved = shop.studio.resolve(Wanted("a dog", seed=1))
    assert shop.standby.started.wait(WAIT_S)
    shop.built.release.set()
    swapping = threading.Thread(target=shop.studio.swap, args=(shop.model,))
    swapping.start()
    shop.standby.release.set()
    swapping.join(WAIT_S)
    after, late = shop.ask("held cat"), shop.studio.submit(resolved)
    assert np.array_equal(before.future.result(WAIT_S).pixels, expected.pixels)
    assert before.future.result().request == request
    assert late.future.result(WAIT_S).request.profile == STANDBY  # resolved before, submitted after
    assert after.request.profile == BUILT
    assert not np.array_equal(after.pixels, expected.pixels)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(1, 6), min_size=1, max_size=12), moment=st.integers(0, 12), held=st.booleans())
def test_no_request_is_lost_or_changed_by_a_swap(tmp_path: Path, steps: list[int], moment: int, held: bool):  # noqa: FBT001
    """Whenever it comes, each request ends with its own profile, and the pixels that a studio of that alone makes."""
    shop = Shop(tmp_path)
    shop.standby.release.set()
    prompts = [f"{'held ' * held}cat {number}" for number in range(len(steps))]
    with shop.studio as studio:
        swapping = threading.Thread(target=studio.swap, args=(shop.model,))
        shop.built.release.set()
        tickets = []
        for number, (prompt, count) in enumerate(zip(prompts, steps, strict=True)):
            if number == moment:
                swapping.start()
            request = studio.resolve(Wanted(prompt, seed=number, steps=count))
            tickets.append((request, studio.submit(request)))
        painted = [(request, ticket.future.result(WAIT_S)) for request, ticket in tickets]
        if swapping.ident:
            swapping.join(WAIT_S)
        for request, got in painted:
            assert got.request == request
            backend = NumpyBackend("float32" if request.profile == STANDBY else "float16")
            assert np.array_equal(got.pixels, alone(tmp_path, backend, request.prompt, request.seed, request.steps))


def alone(directory: Path, backend: NumpyBackend, prompt: str, seed: int, steps: int) -> Pixels:
    """The picture of a studio that knows one backend."""
    backend.release.set()
    models = [double_model(directory / "mini", MINI, backend)]
    with Studio(models, 1024 * 1024, Limits(8, 100, 600, 10**9), EmbeddingCache(10**6)) as studio:
        request = studio.resolve(Wanted(prompt, seed=seed, steps=steps))
        return studio.submit(request).future.result(WAIT_S).pixels


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import sys; print('no such GPU'); sys.exit(3)", "sd35 compile graphs ended with 3: no such GPU"),
        ("pass", "what was built is not what is looked for: graphs is not built yet"),
    ],
)
def test_a_build_that_fails_is_counted_and_the_standby_goes_on(shop: Shop, source: str, why: str):
    """What the child said is in the log, and nothing else changes."""
    with structlog.testing.capture_logs() as logs:
        building = shop.building(source)
        finish(building)
    assert building.failures == 1
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["error"].startswith(why)
    assert shop.ask().request.profile == STANDBY


def test_what_cannot_draw_a_first_picture_is_not_swapped_to(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    """Not even where the standby could make it again."""
    monkeypatch.setattr(shop.built, "decode_latents", lambda _: (_ for _ in ()).throw(FloatingPointError()))
    with pytest.raises(PictureFailed, match="the first picture of mini in double/float16 was spoiled"):
        shop.studio.swap(shop.model)
    assert shop.ask().request.profile == STANDBY


def test_a_full_house_delays_the_swap(shop: Shop):
    """Where there is no room for the first picture it is tried again, and what is in flight is not disturbed."""
    refusals = iter([Overloaded("full", 0), Overloaded("full", 0)])

    def swap(model: Model) -> None:
        if refused := next(refusals, None):
            refused.retry_after_s = 0
            raise refused
        shop.studio.swap(model)

    building = shop.building(BUILD, swap)
    finish(building)
    assert building.failures == 0
    assert shop.ask().request.profile == BUILT


@pytest.mark.parametrize("ignores", [False, True], ids=["at once", "when it is killed"])
def test_stopping_ends_the_child(shop: Shop, monkeypatch: pytest.MonkeyPatch, ignores: bool):  # noqa: FBT001
    """And is no failure; a child that does not end when it is told to is killed."""
    monkeypatch.setattr(fallback, "_ENDING_S", 0.2 if ignores else WAIT_S)
    os.mkfifo(shop.directory / "pid")
    source = "import os, pathlib, signal, sys\n"
    source += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" * ignores
    source += "pathlib.Path(sys.argv[1]).with_name('pid').write_text(str(os.getpid()))\nwhile True: signal.pause()"
    builds = shop.building(source)
    builds.start()
    child = int((shop.directory / "pid").read_text())
    assert builds.is_running
    builds.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    builds._thread.join(WAIT_S)  # noqa: SLF001
    assert (builds.is_running, builds.failures) == (False, 0)


def test_nothing_is_begun_after_stopping(shop: Shop):
    """No child outlives a service that closes just when one was to start."""
    builds = shop.building(BUILD)
    builds.stop()
    finish(builds)
    assert not (shop.directory / "graphs").exists()
    assert builds.failures == 0


def test_a_child_builds_from_the_same_files_on_the_same_device():
    """Whatever flags, environment or file said: all that the command reads is on its line, which it understands."""
    import typer.main

    from sd35.cli.main import app

    flags = {"cache_dir": "/c", "weights": "a.safetensors,b.safetensors", "variants": "/v.toml", "companion": "one"}
    line = command_of(load_settings({**flags, "offline": True, "device": "cuda:1", "threads": 2}), ["compile"])
    arguments = line[line.index("compile") + 1 :]
    compile_ = typer.main.get_command(app).commands["compile"]  # type: ignore[attr-defined]
    given = compile_.make_context("compile", arguments).params
    assert {name: value for name, value in given.items() if value and name not in ("graph_precision", "target")} == {
        "cache_dir": "/c",
        "weights": ["a.safetensors", "b.safetensors"],
        "variants": "/v.toml",
        "companion": "one",
        "offline": True,
        "device": "cuda:1",
        "threads": "2",
        "sensitivity": True,
    }
